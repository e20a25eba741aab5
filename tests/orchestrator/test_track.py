"""The numbers of a run are always in metrics.jsonl, on request in W&B too, and a failure of W&B does not affect the run."""

import base64
import hashlib
import json
import socket
from pathlib import Path

import offline_wandb
import pytest
import wandb
import yaml
from example_report import DENSE, SMALL, example, metrics, stages, structured
from tracked_cases import CONFIG, a_result, a_run, digest, log_everything

from orchestrator.tracking import wandb as tracking_wandb
from orchestrator.tracking.base import Result
from orchestrator.tracking.files import Files
from orchestrator.tracking.wandb import Mode, WandB, has_credentials
from workers.errors import ConfigError

CONF = Path(__file__).parents[2] / "conf" / "tracking"


def lines(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def wandb_settings(**changes) -> WandB:
    defaults = {"project": "secateur", "entity": None, "mode": Mode.OFFLINE, "group": "sweep", "tags": ["test"], "log_model": True}
    return WandB(**{**defaults, "upload_seconds": 2.0, **changes})


def recorded(directory: Path) -> list:
    """The records of the only offline run below ``directory``. W&B's service may write after ``finish``, until it is stopped."""
    wandb.teardown()
    return offline_wandb.records(offline_wandb.the_file(directory))


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    """No test may find, use or create anything in the account of the person who runs it."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home" / name.lower()))


@pytest.fixture
def result(tmp_path) -> Result:
    return a_result(tmp_path)


# -------------------------------------------------------------------------------------------------------------------- files


def test_every_number_is_a_line_with_time_stage_and_metrics(tmp_path, result):
    tracker = Files().start(a_run(tmp_path))
    log_everything(tracker, result)
    entries = lines(tmp_path)
    assert all(set(line) == {"time", "stage", "metrics"} for line in entries)
    assert [line["stage"] for line in entries] == ["start", "dense", "one_shot", "recovered", *["recovery"] * 40, "layers", "end"]
    assert entries[2]["metrics"] == example().stages[1].metrics
    assert entries[-2]["metrics"]["blocks.0.mlp.fc1"]["sparsity"] == 0.75
    assert tracker.where == str(tmp_path / "metrics.jsonl")


def test_a_rerun_appends(tmp_path):
    for top1 in (0.1, 0.2):
        Files().start(a_run(tmp_path)).log("dense", {"top1": top1})
    assert [line["metrics"]["top1"] for line in lines(tmp_path) if line["stage"] == "dense"] == [0.1, 0.2]


def test_half_a_line_of_a_killed_run_does_not_affect_later_lines(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"time": 1, "stage": "de', encoding="utf-8")
    Files().start(a_run(tmp_path)).log("dense", {"top1": 0.5})
    complete = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    assert [json.loads(line)["stage"] for line in complete] == ["start", "dense"]


def test_numbers_that_json_cannot_represent_are_written_as_text(tmp_path):
    Files().start(a_run(tmp_path)).log("dense", {"loss": float("nan"), "top1": None})
    assert lines(tmp_path)[-1]["metrics"] == {"loss": "nan", "top1": None}


# -------------------------------------------------------------------------------------------------------------------- W&B


def test_an_offline_run_holds_config_metrics_curves_table_and_artifacts(tmp_path, result):
    warnings: list[str] = []
    tracker = wandb_settings().start(a_run(tmp_path), warnings.append)
    log_everything(tracker, result)
    assert warnings == []
    assert "wandb sync" in tracker.where

    records = recorded(tmp_path)
    identity = next(record.run for record in records if record.HasField("run"))
    assert (identity.run_id, identity.display_name, identity.project) == ("abc", "digits", "secateur")
    assert (identity.run_group, list(identity.tags)) == ("sweep", ["test", "cap", "digits"])
    assert {key: value for key, value in offline_wandb.config(records).items() if not key.startswith("_wandb")} == CONFIG

    history = offline_wandb.history(records)
    for stage in example().stages:
        (row,) = [row for row in history if f"{stage.name}/top1" in row]
        assert {key: row[f"{stage.name}/{key}"] for key in stage.metrics} == stage.metrics
    curve = [(row["recovery_curve/step"], row["recovery_curve/loss"]) for row in history if "recovery_curve/step" in row]
    assert curve == [(line["step"], line["loss"]) for line in example().curves["recovery"]]
    assert offline_wandb.metrics(records)["recovery_curve/*"] == "recovery_curve/step"

    summary = offline_wandb.summary(records)
    assert summary["recovered/top1"] == 0.965
    assert (
        summary["sparsity"] == 0.75
        and summary["loss_increase/measured"] == 0.3
        and summary["size/file_bytes"] == example().sizes.file_bytes
    )

    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/layers*.json")
    read = json.loads(table.read_text())
    assert [row[0] for row in read["data"]] == [layer.name for layer in example().layers]
    assert [row[read["columns"].index("sparsity")] for row in read["data"]] == [0.75] * 8

    kept = offline_wandb.artifacts(records)
    report, (model,) = kept["abc-report"].manifest.contents, kept["digits-model"].manifest.contents
    assert [file.path for file in report] == ["report.html", "report.json"]
    assert (model.path, model.local_path, model.size) == ("model.safetensors", str(result.model), 7)  # not copied
    assert digest(report[0].local_path) == digest(result.files[0])
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]
    assert [line["stage"] for line in lines(tmp_path)][-1] == "end"


@pytest.mark.parametrize("has_sizes", [True, False])
def test_the_summary_has_the_size_and_speed_of_the_model_before_and_after(has_sizes, tmp_path):
    sizes = {} if has_sizes else {"dense_size": None, "final_size": None}
    wandb_settings().start(a_run(tmp_path)).finish(a_result(tmp_path, structured(**sizes)))
    summary = offline_wandb.summary(recorded(tmp_path))
    logged = {key: value for key, value in summary.items() if key.startswith(("size/dense_", "size/final_", "speed/"))}
    speed = {"speed/dense_images_per_second": 900.0, "speed/final_images_per_second": 1260.0}
    size = {"size/dense_parameters": DENSE.parameters, "size/dense_macs": DENSE.macs}
    size |= {"size/final_parameters": SMALL.parameters, "size/final_macs": SMALL.macs}
    assert logged == {"size/dense_bytes": 102_304} | speed | (size if has_sizes else {})


def test_the_summary_has_the_speed_of_a_masked_model_in_the_sparse_runtime(tmp_path):
    report = example(stages=stages(metrics(0.97), metrics(0.9, sparse_images_per_second=2000.0)))
    wandb_settings().start(a_run(tmp_path)).finish(a_result(tmp_path, report))
    assert offline_wandb.summary(recorded(tmp_path))["speed/sparse_images_per_second"] == 2000.0


def test_a_failed_run_without_report_ends_as_failed(tmp_path):
    tracker = wandb_settings().start(a_run(tmp_path))
    tracker.finish(None)
    records = recorded(tmp_path)
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [1]


def test_a_rerun_has_the_same_id(tmp_path):
    for attempt in ("first", "second"):
        tracker = wandb_settings().start(a_run(tmp_path / attempt, id="run/1"))
        tracker.finish(None)
    attempts = [recorded(tmp_path / attempt) for attempt in ("first", "second")]
    ids = [next(record.run.run_id for record in records if record.HasField("run")) for records in attempts]
    assert ids == ["run-1", "run-1"]  # W&B allows no slash


def test_a_run_without_a_group_of_its_own_is_in_that_of_its_sweep_and_tags_fit(tmp_path):
    run = a_run(tmp_path, group="digits 2026-11-30", tags=("cap", "test", "n" * 80, ""))
    wandb_settings(group=None).start(run).finish(None)
    identity = next(record.run for record in recorded(tmp_path) if record.HasField("run"))
    assert (identity.run_group, list(identity.tags)) == ("digits 2026-11-30", ["test", "cap", "n" * 64])


def test_the_model_is_an_artifact_under_three_names_that_knows_its_dense_model_by_checksum(tmp_path, result):
    log_everything(wandb_settings().start(a_run(tmp_path)), result)
    kept = offline_wandb.artifacts(recorded(tmp_path))
    assert set(kept["digits-model"].aliases) == {"latest", "digits", "01234567"}
    facts = json.loads(kept["digits-model"].metadata)
    assert (facts["accuracy"], facts["sparsity"], facts["dense_sha256"]) == (0.965, 0.75, digest(result.dense))
    dense = kept[f"dense-{digest(result.dense)[:8]}"]
    (file,) = dense.manifest.contents
    md5 = base64.b64encode(hashlib.md5(result.dense.read_bytes()).digest()).decode()
    assert (file.path, file.digest, file.ref) == ("model.safetensors", md5, result.dense.as_uri())
    assert json.loads(dense.metadata) == {"sha256": digest(result.dense)}


class Online:
    """Stands in for a run that is online."""

    id, offline, url = "abc", False, "https://wandb.example.org/abc"

    def __init__(self) -> None:
        self.seen: list[tuple[str, object]] = []
        self.summary: dict = {}

    def __getattr__(self, name: str):
        return lambda *arguments, **named: self.seen.append((name, arguments[0] if arguments else named))


def test_online_the_dense_model_is_an_input_and_the_model_an_output(tmp_path, result, monkeypatch):
    remote, asked = Online(), []
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(wandb, "init", lambda **given: asked.append(given) or remote)
    log_everything(wandb_settings(mode=Mode.AUTO).start(a_run(tmp_path)), result)
    sent = [(verb, what.name) for verb, what in remote.seen if verb in ("use_artifact", "log_artifact")]
    dense = f"dense-{digest(result.dense)[:8]}"
    assert sent == [("log_artifact", "abc-report"), ("use_artifact", dense), ("log_artifact", "digits-model")]
    assert (asked[0]["mode"], asked[0]["id"], asked[0]["resume"]) == ("online", "abc", "allow"), "so an interrupted run continues"
    assert remote.seen[-1] == ("finish", {"exit_code": 0})


def test_in_a_sweep_of_wandb_its_agent_names_the_run(tmp_path, monkeypatch):
    wandb.teardown()  # it reads the environment once
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_RUN_ID", "chosen-by-the-agent")
    chosen = tmp_path / "config.yaml"
    chosen.write_text("wandb_version: 1\npruner: {value: cap}\npruner.target.sparsity: {value: 0.75}\n")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(chosen))
    warnings: list[str] = []
    wandb_settings().start(a_run(tmp_path), warnings.append).finish(None)
    assert not warnings
    identity = next(record.run for record in recorded(tmp_path) if record.HasField("run"))
    assert (identity.run_id, identity.sweep_id) == ("chosen-by-the-agent", "sweep1")


def test_tables_of_workers_and_of_models_are_logged_with_charts(tmp_path, result):
    """Worker 0 computes for 2 + 9 of 12 seconds, worker 1 for 1.5."""
    log_everything(wandb_settings().start(a_run(tmp_path)), result)
    found = recorded(tmp_path)

    def read(name: str) -> list[dict]:
        (path,) = tmp_path.glob(f"wandb/offline-run-*/files/media/table/{name}_[0-9]*.json")
        table = json.loads(path.read_text())
        return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]

    assert [(row["process"], row["busy"]) for row in read("workers")] == [
        ("worker-0", pytest.approx(11 / 12)),
        ("worker-1", pytest.approx(1.5 / 12)),
    ]
    assert [(row["model"], row["accuracy"]) for row in read("pareto")] == [("dense", 0.97), ("one_shot", 0.9), ("recovered", 0.965)]
    drawn = [key for record in found for item in record.config.update for key in item.nested_key]
    assert "worker_utilisation" in drawn and "accuracy_against_size" in drawn


def test_the_model_is_not_uploaded_unless_log_model_is_set(tmp_path, result):
    tracker = wandb_settings(log_model=False).start(a_run(tmp_path))
    log_everything(tracker, result)
    assert {found.type for found in offline_wandb.artifacts(recorded(tmp_path)).values()} == {"run_table", "report"}


def test_a_failure_of_wandb_gives_one_warning_and_loses_nothing(tmp_path, result, monkeypatch):
    warnings: list[str] = []
    tracker = wandb_settings().start(a_run(tmp_path), warnings.append)
    remote = tracker.service.remote

    def broken(*_args, **_kwargs):
        raise RuntimeError("the connection is lost\ndetails")

    monkeypatch.setattr(remote, "log", broken)
    log_everything(tracker, result)
    monkeypatch.undo()
    remote.finish()
    assert len(warnings) == 1 and "the connection is lost" in warnings[0] and "details" not in warnings[0]
    assert [line["stage"] for line in lines(tmp_path)].count("recovery") == 40


def test_a_server_that_cannot_be_reached_gives_an_offline_run(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(tracking_wandb, "START_SECONDS", 1)
    warnings: list[str] = []
    tracker = wandb_settings(mode=Mode.AUTO).start(a_run(tmp_path), warnings.append)
    tracker.log("dense", {"top1": 0.5})
    tracker.finish(None)
    assert len(warnings) == 1 and "(online)" in warnings[0]
    assert {"top1": 0.5} in [line["metrics"] for line in lines(tmp_path)]
    assert any(row.get("dense/top1") == 0.5 for row in offline_wandb.history(recorded(tmp_path)))


def test_online_without_an_account_is_offline_with_a_warning_and_no_prompt(tmp_path):
    warnings: list[str] = []
    tracker = wandb_settings(mode=Mode.ONLINE).start(a_run(tmp_path), warnings.append)
    tracker.finish(None)
    assert len(warnings) == 1 and "WANDB_API_KEY" in warnings[0]
    assert offline_wandb.the_file(tmp_path).exists()


def test_disabled_starts_nothing(tmp_path):
    wandb_settings(mode=Mode.DISABLED).start(a_run(tmp_path)).log("dense", {"top1": 0.5})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]


# -------------------------------------------------------------------------------------------------------------------- settings


def test_credentials_are_a_key_or_a_netrc_entry_of_the_right_host(tmp_path, monkeypatch):
    assert not has_credentials()
    file = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(file))
    assert not has_credentials()
    file.write_text("machine elsewhere.org login user password secret\n")
    assert not has_credentials()
    file.write_text("machine api.wandb.ai login user password secret\n")
    assert has_credentials()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_credentials()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert has_credentials()


def test_a_broken_netrc_is_not_a_credential(tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("this is not a netrc file\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not has_credentials()


def test_bad_settings_name_the_key():
    with pytest.raises(ConfigError, match=r"tracking\.project"):
        wandb_settings(project="")
    with pytest.raises(ConfigError, match=r"tracking\.upload_seconds"):
        wandb_settings(upload_seconds=0.0)


@pytest.mark.parametrize(("name", "kind"), [("files", Files), ("wandb", WandB)])
def test_each_yaml_lists_every_field(name, kind):
    read = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    assert read.pop("_target_") == f"orchestrator.tracking.{name}.{kind.__name__}"
    assert set(read) == set(kind.__dataclass_fields__)
    kind(**read)
    assert Mode(read.get("mode", "auto")) is Mode.AUTO
