"""Sweeps of the tiny model: points side by side, and searches."""

import importlib.util
import json
import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from run_cases import ON_RAY, arguments, directory, model_bytes, run, start
from warm import Ended, orchestrate

SIDE_BY_SIDE = ("--multirun", "hydra/launcher=ray_shared", "hydra.launcher.n_jobs=2")
SEARCH = ("--multirun", "hydra/sweeper=search", "objectives=[one_shot_accuracy,sparsity]", "hydra.sweep.dir=found")
needs_optuna = pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="needs optuna")


def sweep(folder: Path, *overrides: str) -> Ended:
    """A command line whose first settings sweep."""
    folder.mkdir(exist_ok=True)
    return orchestrate(*arguments(folder, *overrides), cwd=folder)


def reports(folder: Path) -> dict[int, dict]:
    """The reports of a sweep over seeds, by seed."""
    found = [json.loads(path.read_text()) for path in (folder / "runs").glob("tiny-*/report.json")]
    return {report["experiment"]["seed"]: report for report in found}


def log_of(folder: Path, number: int) -> str:
    (path,) = folder.glob(f"runs/sweeps/*/{number}/output.log")
    return path.read_text()


def family(process: subprocess.Popen) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def wait_until_gone(processes: list[psutil.Process]) -> None:
    """Until none of them runs; an hour guards against hanging."""
    _, alive = psutil.wait_procs([process for process in processes if process.is_running()], timeout=3600)
    assert not alive


def start_sweep(folder: Path, until: str, *overrides: str) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """Start a sweep, and return it with its processes when a line contains ``until``."""
    process = start(folder, *overrides)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if until in line:
            return process, family(process)
    pytest.fail(f"{until!r} was never said: {''.join(lines)}")


@pytest.mark.slow
def test_points_side_by_side_have_the_bytes_of_a_run_and_a_point_that_fails_stops_no_other(tmp_path: Path) -> None:
    ended = sweep(tmp_path / "side", *SIDE_BY_SIDE, "pruner.dampening=-1,1e-3", "cluster=local", "cluster.threads=1")
    run(tmp_path / "alone")
    assert ended.returncode == 2, "the setting that failed is a bad one"
    assert model_bytes(tmp_path / "side") == model_bytes(tmp_path / "alone")
    assert "1 of 2 points failed; see" in ended.stderr and list((tmp_path / "side").glob("runs/sweeps/*/sweep.html"))
    (failed,) = [line for line in ended.stdout.splitlines() if line.startswith("[0] failed")]
    assert "pruner.dampening=-1" in failed and "pruner.dampening: expected a positive number, got -1.0" in failed
    assert "[1] collect: started" in ended.stdout and "[1] done in" in ended.stdout
    assert "Traceback" not in ended.stdout + ended.stderr
    assert "error: point 0 failed" in log_of(tmp_path / "side", 0) and "collect: done" in log_of(tmp_path / "side", 1)


@pytest.mark.slow
def test_callbacks_of_jobs_find_the_sweep_and_the_number_of_their_point_in_its_process(tmp_path: Path) -> None:
    (tmp_path / "noting.py").write_text(
        "import json, os\n"
        "from pathlib import Path\n"
        "from hydra.experimental.callback import Callback\n"
        "class Note(Callback):\n"
        "    def on_job_end(self, config, job_return, **kwargs):\n"
        "        told = [os.getpid(), str(config.hydra.mode), config.seed, job_return.return_value]\n"
        "        (Path(config.hydra.sweep.dir) / f'{config.hydra.job.num}.json').write_text(json.dumps(told))\n"
        "    def on_multirun_end(self, config, **kwargs):\n"
        "        (Path(config.hydra.sweep.dir) / 'end').write_text(str(os.getpid()))\n"
    )
    callback = ("+hydra.callbacks.note._target_=noting.Note", "hydra.sweep.dir=here")
    process = subprocess.run(
        [*_command(tmp_path, *SIDE_BY_SIDE, "seed=3,4", *callback)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parent.parent)])},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    told = {number: json.loads((tmp_path / "here" / f"{number}.json").read_text()) for number in (0, 1)}
    assert [told[number][1:3] for number in (0, 1)] == [["RunMode.MULTIRUN", 3], ["RunMode.MULTIRUN", 4]]
    accuracies = {seed: report["stages"][-1]["metrics"]["top1"] for seed, report in reports(tmp_path).items()}
    assert [told[0][3], told[1][3]] == [accuracies[3], accuracies[4]]
    assert len({told[0][0], told[1][0], int((tmp_path / "here" / "end").read_text())}) == 3, "each in a process of its own"


def _command(folder: Path, *overrides: str) -> list[str]:
    import sys

    return [sys.executable, "-m", "orchestrator", *arguments(folder, *overrides)]


@pytest.mark.slow
def test_two_trainings_that_each_need_the_whole_machine_take_turns(tmp_path: Path) -> None:
    """Each of two ranks asks for half of the cores, so one training waits for the other, far longer than cluster.wait_seconds."""
    cores = len(os.sched_getaffinity(0))
    training = ("recovery=adamw", "recovery.epochs=2", "recovery.ranks=2", f"cluster.cpus_per_worker={cores / 2}")
    ended = sweep(tmp_path, *SIDE_BY_SIDE, "seed=0,1", "cluster=ray", "cluster.wait_seconds=0.1", *training)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    trainings = []
    for report in reports(tmp_path).values():
        (task,) = [task for task in report["timeline"] if task["verb"] == "train"]
        trainings.append((task["started"], task["started"] + task["seconds"]))
    (_, first_ended), (second_started, _) = sorted(trainings)
    assert first_ended <= second_started


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_sweep_that_is_ended_leaves_no_process_behind_and_continues(how: signal.Signals, tmp_path: Path) -> None:
    """Also none that is stopped when the sweep is killed: points, workers and Ray's own processes."""
    process, children = start_sweep(tmp_path, "collect: started", *SIDE_BY_SIDE, "seed=0,1", *ON_RAY)
    assert any("raylet" in child.name() for child in children) and len(children) > 3
    for child in children if how is signal.SIGKILL else []:
        if "watch.py" not in " ".join(child.cmdline()):
            child.suspend()
    process.send_signal(how)
    said = process.communicate()[0]
    wait_until_gone(children)
    assert "Traceback" not in said
    assert (f"error: the driver (process {process.pid}) died" in said) == (how is signal.SIGKILL)
    assert process.returncode == (-signal.SIGKILL if how is signal.SIGKILL else 130)
    ended = sweep(tmp_path, *SIDE_BY_SIDE, "seed=0,1", *ON_RAY)
    assert ended.returncode == 0 and reports(tmp_path).keys() == {0, 1}


def test_points_with_different_clusters_are_refused_in_one_line(tmp_path: Path) -> None:
    ended = sweep(tmp_path, *SIDE_BY_SIDE, "cluster=local", "cluster.threads=1,2")
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: hydra/launcher=ray_shared: the points share one cluster, but their settings of it differ")


def test_a_hopeless_run_ends_before_its_recovery_and_says_so(tmp_path: Path) -> None:
    recovery = ("recovery=adamw", "recovery.epochs=1")
    said = run(tmp_path / "hopeless", *recovery, "stop_below=1")
    report = json.loads((directory(tmp_path / "hopeless") / "report.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == ["dense", "one_shot"] and report["stopped_below"] == 1
    assert any(sentence.startswith("The run was stopped early") for sentence in report["sentences"]), report["sentences"]
    assert "stopped early: the one-shot accuracy of" in said
    run(tmp_path / "hopeful", *recovery, "stop_below=0")
    report = json.loads((directory(tmp_path / "hopeful") / "report.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == ["dense", "one_shot", "recovered"] and report["stopped_below"] is None


def test_the_rounds_after_a_hopeless_one_are_left_out(tmp_path: Path) -> None:
    rounds = ("+rounds.a.pruner.target.sparsity=0.3", "+rounds.b.pruner.target.sparsity=0.6")
    run(tmp_path, "recovery=adamw", "recovery.epochs=1", *rounds, "stop_below=1")
    report = json.loads((directory(tmp_path) / "report.json").read_text())
    assert [(part["name"], part["epochs"]) for part in report["rounds"]] == [("a", 0)]
    assert report["stopped_below"] == 1


def test_unknown_objectives_are_named_with_those_that_exist(tmp_path: Path) -> None:
    ended = sweep(tmp_path, "objectives=[speed]")
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: objectives: expected names among accuracy, one_shot_accuracy,") and line.endswith("got 'speed'")


@needs_optuna
def test_a_killed_search_continues_with_the_point_that_was_running(tmp_path: Path) -> None:
    space = ("hydra.sweeper.trials=3", "pruner.dampening=tag(log,interval(1e-5,1e-1))", "pruner.score_rule=choice(hull,marginal)")
    process, _ = start_sweep(tmp_path, "score: started", *SEARCH, *space)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (unfinished,) = [path for path in (tmp_path / "runs").glob("tiny-*") if not (path / "report.json").exists()]
    ended = sweep(tmp_path, *SEARCH, *space)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (unfinished / "report.json").exists()
    assert len(list((tmp_path / "runs").glob("tiny-*/report.json"))) == 3
    states = [json.loads(path.read_text())["state"] for path in (tmp_path / "found" / "points").glob("[0-9]*.json")]
    assert states == ["done"] * 3, "the interrupted point counts once"
    best = json.loads((tmp_path / "found" / "best.json").read_text())
    everything = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("tiny-*/report.json")]
    one_shot = [next(s["metrics"]["top1"] for s in report["stages"] if s["name"] == "one_shot") for report in everything]
    assert max(point["one_shot_accuracy"] for point in best) == max(one_shot)
    assert f"one_shot_accuracy {max(one_shot):.4g}" in ended.stdout

    again = sweep(tmp_path, *SEARCH, *space)
    assert again.returncode == 0 and "collect" not in again.stdout, "a search with all its points runs none"
    other = sweep(tmp_path, *SEARCH, *space[:2], "pruner.score_rule=choice(hull,accumulated)")
    assert other.returncode == 2 and "change the name for another search" in other.stderr and len(other.stderr.splitlines()) == 1


@pytest.mark.slow
@needs_optuna
def test_a_search_side_by_side_does_not_recover_points_that_are_worse_than_the_best_and_goes_on_when_one_fails(tmp_path: Path) -> None:
    """Of four points, drawn among a dampening that is refused and sparsities, each that is stopped is worse than the best by the margin."""
    options = ("hydra/launcher=ray_shared", "hydra.sweeper.trials=4", "hydra.sweeper.margin=0.01", "recovery=adamw", "recovery.epochs=1")
    space = ("pruner.target.sparsity=interval(0.1,0.95)", "pruner.dampening=choice(-1,1e-3,1e-2)", "hydra.sweeper.at_once=2")
    ended = sweep(tmp_path, *SEARCH, *options, *space)
    failed = [line for line in ended.stdout.splitlines() if "] failed after" in line]
    found = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("tiny-*/report.json")]
    assert len(found) + len(failed) == 4 and ended.returncode == 2 * bool(failed), ended.stdout + ended.stderr
    assert all("pruner.dampening: expected a positive number" in line for line in failed)
    one_shot = {report["fingerprint"]: report["stages"][1]["metrics"]["top1"] for report in found}
    for report in found:
        below = report["experiment"]["stop_below"]
        assert (report["stopped_below"] is not None) == (below is not None and one_shot[report["fingerprint"]] < below)
        assert below is None or any(accuracy == pytest.approx(below + 0.01, abs=1e-5) for accuracy in one_shot.values())
    assert f"best of {len(found)} points" in ended.stdout
