"""Runs of the tiny model from the command line, and what they leave."""

import copy
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tiny import tiny_overrides
from torch.utils.flop_counter import FlopCounterMode
from warm import Running, orchestrate

ON_RAY = ("cluster=ray", "cluster.cpus_per_worker=0.5")
SHAPE = (1, 16, 16)


def arguments(folder: Path, *overrides: str) -> list[str]:
    """Of a run of the tiny model in ``folder``; what ``overrides`` set replaces what it would have."""
    flags, settings = [o for o in overrides if o.startswith("--")], [o for o in overrides if not o.startswith("--")]
    kept = [o for o in tiny_overrides(folder) if not any(s.startswith(o.partition("=")[0] + "=") for s in settings)]
    if any(s.startswith("pruner=") and s != "pruner=cap" for s in settings):
        kept = [o for o in kept if not o.startswith("pruner.block_size=")]
    if any(s.startswith("pruner.target.removed=") for s in settings):
        kept = [o for o in kept if not o.startswith("pruner.target.sparsity=")]
    if any(s.startswith("model=") for s in settings):
        kept = [o for o in kept if not o.startswith("model.")]
    return [*flags, *kept, *settings]


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "orchestrator", *arguments(folder, *overrides)]
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def run(folder: Path, *overrides: str) -> str:
    folder.mkdir(exist_ok=True)
    ended = orchestrate(*arguments(folder, *overrides), cwd=folder)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def run_at_once(folder: Path, *runs: tuple[str, ...]) -> list[str]:
    """What several runs that are started together in one folder print."""
    arguments(folder)  # writes the checkpoint
    with ThreadPoolExecutor(len(runs)) as threads:
        return list(threads.map(lambda overrides: run(folder, *overrides), runs))


def begin(folder: Path, *overrides: str) -> Running:
    return Running(*arguments(folder, *overrides), cwd=folder)


def stopped_at(stage: str, folder: Path, *overrides: str) -> Running:
    """A run that is stopped, without being ended, as soon as it says that ``stage`` has started."""
    process = begin(folder, *overrides)
    process.stop_when(lambda: f"\n{stage}: started" in process.text())
    return process


def kill_at(stage: str, folder: Path, *overrides: str) -> None:
    """Start a run and kill its driver as soon as it says that ``stage`` has started."""
    process = start(folder, *overrides)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"{stage}: started"):
            process.send_signal(signal.SIGKILL)
            break
    else:
        pytest.fail(f"{stage} never started")
    process.wait()


def directory(folder: Path) -> Path:
    (found,) = (path for path in (folder / "runs").iterdir() if path.name.startswith("tiny-"))
    return found


def model_bytes(folder: Path) -> bytes:
    return (directory(folder) / "model.safetensors").read_bytes()


def computed(folder: Path) -> Counter[str]:
    """How often each result was computed, over all starts of a run."""
    return Counter(line["fingerprint"] for line in tasks(directory(folder)) if line["computed"])


def tasks(run_directory: Path) -> list[dict]:
    """What a run has computed or read, over all of its starts."""
    return [json.loads(line) for line in (run_directory / "tasks.jsonl").read_text().splitlines()]


def report_of(folder: Path) -> dict:
    return json.loads((directory(folder) / "report.json").read_text())


def stored(folder: Path, verb: str) -> list[Path]:
    """Directories of the results of a verb, in the order in which they were computed: the time of a directory is that of its last use."""
    records = (folder / "runs" / "store" / verb).rglob("record.json")
    return [record.parent for record in sorted(records, key=lambda record: record.stat().st_mtime_ns)]


def macs(model: torch.nn.Module) -> int:
    """By torch's counter, on the meta device: on the CPU it does not see attention."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(model).to("meta")(torch.zeros(1, *SHAPE, device="meta"))
    return counter.get_total_flops() // 2
