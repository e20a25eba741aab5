"""Pages about names that somebody else chose, in a real browser: nothing of them runs. Skipped without chromium."""

import html
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from example_report import example, layer
from sweep_cases import report, sweep_of

from orchestrator.report.page import page
from orchestrator.status.page import write_page
from orchestrator.status.state import State
from orchestrator.sweep.gather import compared_points
from orchestrator.sweep.page import page as sweep_page
from orchestrator.sweep.records import fail_point, start_point

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
RUN = "top.document.title='ran'"
PAYLOADS = (
    f"</script><script>{RUN}</script>",
    f"--><script>{RUN}</script>",
    f"\"'><img src=x onerror={RUN}>",
    f"<svg onload={RUN}>",
    f"' onfocus={RUN} autofocus tabindex=1 x='",
    f'<a href="javascript:{RUN}" autofocus onfocus={RUN}>x</a>',
    f"\u2028\u2029;{RUN};//",
    f"`${{{RUN}}}`{{{{ 7 * 7 }}}}",
)
TEXT = " ".join(PAYLOADS)


def report_page() -> str:
    timeline = [replace(task, what=TEXT, worker=TEXT) for task in example().timeline]
    layers = [replace(layer(0, "mlp.fc1"), name=TEXT), layer(1, "mlp.fc1")]
    plain = {
        "name": TEXT,
        "command": TEXT,
        "warnings": [TEXT],
        "experiment": {TEXT: TEXT},
        "environment": {TEXT: TEXT},
        "files": {TEXT: TEXT},
    }
    return page(example(**plain, layers=layers, timeline=timeline, curves={TEXT: example().curves["recovery"]}))


def page_of_a_sweep(folder: Path) -> str:
    points = []
    for index in range(2):
        content = report(pruner=f"{TEXT}{index}", name=TEXT, accuracy=0.9 - index / 10)
        content["experiment"][TEXT] = f"{TEXT}{index}"
        points.append(([f"name={TEXT}", f"+{TEXT}={TEXT}{index}"], content))
    sweep = sweep_of(folder, points, command=TEXT)
    fail_point(sweep, start_point(sweep, 2, [f"name={TEXT}"]), RuntimeError(TEXT))
    return sweep_page(compared_points(sweep), sweep)


def page_of_runs(output: Path) -> str:
    for index, payload in enumerate(PAYLOADS):
        directory = output / f"{index} {payload.replace('/', '|')}"
        directory.mkdir(parents=True)
        (directory / "report.html").touch()
        now = time.time()
        State(TEXT, TEXT, "failed", TEXT, 1, now, now, now, TEXT, 1, 2, 0.5, TEXT, None).write(directory)
    return write_page(output).read_text(encoding="utf-8")


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
def test_no_name_on_a_page_runs_in_a_browser(tmp_path: Path) -> None:
    """All pages in frames of one page, beside two that are not escaped: what they do shows that the browser would run the names."""
    pages = {
        "report": report_page(),
        "sweep": page_of_a_sweep(tmp_path / "sweep"),
        "runs": page_of_runs(tmp_path / "runs"),
        "script": "<script>top.document.body.dataset.script = 'ran'</script>",
        "image": "<img src=x onerror=\"top.document.body.dataset.image = 'ran'\">",
    }
    drawn = "<script>onload = () => { document.body.dataset.drawn = frames[0].document.querySelectorAll('svg.main-svg').length }</script>"
    frames = "".join(f'<iframe srcdoc="{html.escape(content)}"></iframe>' for content in pages.values())
    (tmp_path / "all.html").write_text(f"<!doctype html><meta charset=utf-8><title>quiet</title><body>{frames}{drawn}", encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--dump-dom", "--virtual-time-budget=4000", f"file://{tmp_path / 'all.html'}"]
    shown = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=3600, check=True).stdout
    body = shown[shown.index("<body") :].split(">")[0]
    assert 'data-script="ran"' in body and 'data-image="ran"' in body and "data-drawn" in body and 'data-drawn="0"' not in body, body
    assert "<title>quiet</title>" in shown
