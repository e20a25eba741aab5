"""TensorBoard and MLflow get what is in metrics.jsonl, as their own readers find it; their failures do not affect the run."""

import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from example_report import example, metrics
from tracked_cases import a_result, a_run, log_everything

from orchestrator.report.write import as_json
from orchestrator.tracking import base
from orchestrator.tracking.mlflow import ID, MLflow, flat
from orchestrator.tracking.numbers import Rows
from orchestrator.tracking.tensorboard import FOLDER, TensorBoard, markdown
from workers.errors import ConfigError

with_tensorboard = pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs the extra tensorboard")
with_mlflow = pytest.mark.skipif(find_spec("mlflow") is None, reason="needs the extra mlflow")


def settings(**changes) -> MLflow:
    return MLflow(**{"uri": None, "experiment": "secateur", "log_model": True} | changes)


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


# -------------------------------------------------------------------------------------------------------- TensorBoard


def read_events(directory: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(directory / FOLDER), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def text_of(events, tag: str) -> str:
    return events.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0].decode()


@with_tensorboard
def test_tensorboard_reads_every_number_curve_and_table(tmp_path):
    warnings: list[str] = []
    tracker = TensorBoard().start(a_run(tmp_path), warnings.append)
    log_everything(tracker, a_result(tmp_path))
    assert warnings == [] and "tensorboard --logdir" in tracker.where
    events = read_events(tmp_path)
    for stage in example().stages:
        for key, value in stage.metrics.items():
            assert [(found.step, found.value) for found in events.Scalars(f"{stage.name}/{key}")] == [(0, pytest.approx(value))]
    curve = [(found.step, found.value) for found in events.Scalars("recovery_curve/loss")]
    assert curve == [(line["step"], pytest.approx(line["loss"])) for line in example().curves["recovery"]]
    assert events.Scalars("summary/accuracy")[0].value == pytest.approx(0.965)
    assert events.Scalars("busy/worker-0")[0].value == pytest.approx(11 / 12)
    assert '"sparsity": 0.75' in text_of(events, "configuration")
    assert "| blocks.0.attn.qkv | 96 | 32 |" in text_of(events, "layers")
    assert "recovered" in text_of(events, "pareto") and "worker-1" in text_of(events, "workers")
    assert events.Histograms("layers/sparsity")[0].histogram_value.num == len(example().layers)


@with_tensorboard
def test_a_run_that_continues_shows_each_number_once(tmp_path):
    """TensorBoard forgets what an interrupted start logged at the steps that are logged again."""
    for top1 in (0.1, 0.2):
        tracker = TensorBoard().start(a_run(tmp_path))
        tracker.log("dense", {"top1": top1})
        tracker.curve("recovery", [{"step": step, "loss": top1} for step in (1, 2, 3)])
        tracker.finish(None)
        time.sleep(1.1)  # event files are named after the second
    events = read_events(tmp_path)
    assert [found.value for found in events.Scalars("dense/top1")] == [pytest.approx(0.2)]
    assert [(found.step, found.value) for found in events.Scalars("recovery_curve/loss")] == [
        (step, pytest.approx(0.2)) for step in (1, 2, 3)
    ]


def test_a_table_is_markdown_whatever_the_names_are():
    assert markdown(Rows(("a", "b"), [["x|y", None], ["z", 0.123456789]])) == "| a | b |\n| --- | --- |\n| x\\|y |  |\n| z | 0.123457 |"


# ------------------------------------------------------------------------------------------------------------- MLflow


def runs_of(output: Path) -> list:
    from mlflow import MlflowClient

    client = MlflowClient((output / "mlruns").as_uri())
    return client.search_runs([client.get_experiment_by_name("secateur").experiment_id])


def written(output: Path, run) -> Path:
    (folder,) = (output / "mlruns").glob(f"*/{run.info.run_id}")
    return folder


@with_mlflow
def test_mlflow_reads_every_number_parameter_and_file(tmp_path):
    warnings: list[str] = []
    tracker = settings().start(a_run(tmp_path / "digits-1", group="digits now"), warnings.append)
    log_everything(tracker, a_result(tmp_path / "digits-1"))
    assert warnings == []
    (run,) = runs_of(tmp_path)
    assert run.info.status == "FINISHED" and run.info.run_name == "digits" and run.info.run_id in tracker.where
    assert run.data.params == {"pruner.target.sparsity": "0.75", "seed": "0"}
    assert run.data.tags[ID] == "abc" and run.data.tags["group"] == "digits now" and run.data.tags["tags"] == "cap, digits"
    for stage in example().stages:
        assert {key: run.data.metrics[f"{stage.name}/{key}"] for key in stage.metrics} == stage.metrics
    assert run.data.metrics["summary/accuracy"] == 0.965
    lines = (written(tmp_path, run) / "metrics" / "recovery_curve" / "loss").read_text().splitlines()
    assert [(int(line.split()[2]), float(line.split()[1])) for line in lines] == [
        (k["step"], k["loss"]) for k in example().curves["recovery"]
    ]
    kept = written(tmp_path, run) / "artifacts"
    assert (kept / "model.safetensors").read_bytes() == b"weights" and (kept / "report.html").exists()
    assert [row["layer"] for row in json.loads((kept / "layers.json").read_text())] == [layer.name for layer in example().layers]
    assert [row["model"] for row in json.loads((kept / "pareto.json").read_text())] == ["dense", "one_shot", "recovered"]


@with_mlflow
def test_an_interrupted_run_continues_at_mlflow_even_if_settings_that_change_no_result_differ(tmp_path):
    settings().start(a_run(tmp_path / "digits-1", config={"threads": 1})).finish(None)
    (failed,) = runs_of(tmp_path)
    tracker = settings().start(a_run(tmp_path / "digits-1", config={"threads": 2, "seed": 0}))
    (running,) = runs_of(tmp_path)
    tracker.finish(a_result(tmp_path / "digits-1"))
    (ended,) = runs_of(tmp_path)
    assert failed.info.run_id == running.info.run_id == ended.info.run_id
    assert [run.info.status for run in (failed, running, ended)] == ["FAILED", "RUNNING", "FINISHED"]
    assert ended.data.params == {"threads": "1", "seed": "0"}


@with_mlflow
def test_the_model_stays_local_without_log_model_and_numbers_that_are_not_finite_are_left_out(tmp_path):
    tracker = settings(log_model=False).start(a_run(tmp_path / "digits-1"))
    tracker.log("dense", metrics(float("nan"), loss=None))
    tracker.finish(a_result(tmp_path / "digits-1"))
    (run,) = runs_of(tmp_path)
    assert not (written(tmp_path, run) / "artifacts" / "model.safetensors").exists()
    assert "dense/top1" not in run.data.metrics and run.data.metrics["dense/top5"] == 0.99


@with_mlflow
def test_a_server_that_is_no_server_costs_a_warning_and_no_number(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    warnings: list[str] = []
    tracker = settings(uri="http://127.0.0.1:9").start(a_run(tmp_path), warnings.append)
    log_everything(tracker, a_result(tmp_path))
    assert len(warnings) == 1 and warnings[0].startswith("MLflow could not be started: ")
    assert '"end"' in (tmp_path / "metrics.jsonl").read_text()


# ---------------------------------------------------------------------------------------------- without the packages


class Calls:
    """Stands in for a package: remembers what is called on it."""

    def __init__(self, seen: list, name: str = "") -> None:
        self.seen, self.name = seen, name

    def __getattr__(self, name: str) -> "Calls":
        return Calls(self.seen, name)

    def __call__(self, *arguments, **named):
        self.seen.append((self.name, arguments, named))
        return [] if self.name == "search_runs" else self


def test_mlflow_is_asked_to_create_fill_and_end_a_run(tmp_path, monkeypatch):
    seen: list = []
    for name in ("mlflow", "mlflow.entities"):
        monkeypatch.setitem(sys.modules, name, Calls(seen))
    warnings: list[str] = []
    log_everything(settings(uri="https://example.org").start(a_run(tmp_path), warnings.append), a_result(tmp_path))
    assert warnings == []
    order = [name for name, _, _ in seen if name not in ("Metric", "Param")]
    assert order[:5] == ["MlflowClient", "get_experiment_by_name", "search_runs", "create_run", "log_batch"]
    assert order[-1] == "set_terminated" and seen[-1][1][1] == "FINISHED"
    metric = {arguments[0]: (arguments[1], arguments[3]) for name, arguments, _ in seen if name == "Metric"}
    assert metric["recovered/top1"] == (0.965, 0) and metric["recovery_curve/loss"] == (1 / 40, 40)
    assert {arguments[0]: arguments[1] for name, arguments, _ in seen if name == "Param"} == {"pruner.target.sparsity": "0.75", "seed": "0"}


def test_tensorboard_is_given_scalars_and_closed(tmp_path, monkeypatch):
    seen: list = []
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", Calls(seen))
    log_everything(TensorBoard().start(a_run(tmp_path)), a_result(tmp_path))
    assert seen[0][0] == "SummaryWriter" and seen[-1][0] == "close"
    assert ("add_scalar", ("recovered/top1", 0.965, 0), {}) in seen
    assert ("add_scalar", ("recovery_curve/loss", 1 / 40, 40), {}) in seen


@pytest.mark.parametrize("name", ["mlflow", "tensorboard"])
def test_a_missing_package_is_one_line_that_names_the_extra(name, monkeypatch):
    monkeypatch.setattr(base, "find_spec", lambda package: None)
    chosen = {"mlflow": settings(), "tensorboard": TensorBoard()}[name]
    with pytest.raises(ConfigError, match=rf"^tracking: it needs the package {name}.*secateur\[{name}\]'$"):
        chosen.check()


def test_a_failure_of_a_service_gives_one_warning_and_loses_nothing(tmp_path, monkeypatch):
    seen: list = []
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", Calls(seen))
    warnings: list[str] = []
    tracker = TensorBoard().start(a_run(tmp_path), warnings.append)
    monkeypatch.setattr(tracker.service, "log", lambda *_: 1 / 0)
    log_everything(tracker, a_result(tmp_path))
    assert len(warnings) == 1 and warnings[0].startswith("TensorBoard failed (division by zero)")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines].count("recovery") == 40 and lines[-1]["metrics"]["status"] == "finished"


def test_passwords_do_not_belong_into_settings():
    with pytest.raises(ConfigError, match=r"tracking\.uri.*MLFLOW_TRACKING_PASSWORD") as refused:
        settings(uri="https://me:hunter2@example.org")
    assert "hunter2" not in str(refused.value)
    with pytest.raises(ConfigError, match=r"tracking\.experiment"):
        settings(experiment="")


def test_parameters_have_dotted_names():
    config = {"a": {"b": {"c": 1}, "d": {}}, "e": [1, None], "f": None}
    assert dict(flat(as_json(config))) == {"a.b.c": "1", "a.d": "{}", "e": "[1, None]", "f": "None"}
