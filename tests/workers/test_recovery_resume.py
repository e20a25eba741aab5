"""A training that is killed and started again ends with the bytes of an uninterrupted one, and leaves no files behind."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from disk_cases import files_of_at_most
from recovery_cases import recipe, sparse_model, stripes, task
from watch import Watch

from workers.errors import SecateurError
from workers.messages import TrainTask
from workers.training import gang, loop
from workers.training.checkpoints import Checkpoints
from workers.training.gang import run_gang
from workers.training.settings import Optimizer, Training

HERE = Path(__file__).parent
START = "import pickle, sys; sys.path[:0] = [sys.argv[2], sys.argv[3]]\n" + (
    "if __name__ == '__main__':\n"
    "    from workers.training.gang import run_gang\n"
    "    sent = pickle.load(open(sys.argv[1], 'rb'))\n"
    "    print(run_gang(sent, sent.training.ranks, 1).numbers.epochs_resumed_from)\n"
)


def start(folder: Path, sent: TrainTask, **environment: str) -> subprocess.Popen[str]:
    """A driver that trains with a gang, as a process of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "task.pickle").write_bytes(pickle.dumps(sent))
    (folder / "start.py").write_text(START)
    command = [sys.executable, str(folder / "start.py"), str(folder / "task.pickle"), str(HERE), str(HERE.parent.parent)]
    variables = os.environ | {"PYTHONPATH": str(HERE.parent.parent)} | environment
    return subprocess.Popen(command, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def model_bytes(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def reported(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "progress.jsonl").read_text().splitlines()]


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 3600
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.002)


def interrupted(folder: Path, model: Path, recovery: Training, after: int) -> None:
    """Train until the data goes away after some epochs."""
    with pytest.raises(OSError, match="went away"):
        run_gang(task(folder, model, recovery, stripes(fails_in_epoch=after)), recovery.ranks, 1)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return sparse_model(tmp_path / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_a_gang_ends_with_its_killed_driver_and_a_rerun_has_equal_bytes(stage: int, model: Path, tmp_path: Path) -> None:
    settings = recipe(ranks=2, epochs=12, zero_stage=stage)
    run_gang(task(tmp_path / "whole", model, settings), 2, 1)
    sent = task(tmp_path / "killed", model, settings)
    process = start(tmp_path / "driver", sent)
    wait_for(tmp_path / "killed" / "checkpoints" / "epoch3.json", process)
    ranks = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    _, alive = psutil.wait_procs(ranks, timeout=3600)
    assert len(ranks) >= 2 and not alive, "ranks train on without their driver"
    assert not (tmp_path / "killed" / "record.json").exists(), "it was too late to kill it"
    record = run_gang(sent, 2, 1)
    assert record.numbers.epochs_resumed_from >= 3 and record.numbers.steps == 96
    assert model_bytes(tmp_path / "killed") == model_bytes(tmp_path / "whole")
    steps = reported(tmp_path / "killed")
    assert steps == sorted(set(steps)) and set(range(8, 97, 8)) <= set(steps), "every epoch is reported, once"
    assert not (tmp_path / "killed" / "checkpoints").exists()


def test_a_killed_rank_ends_the_gang_with_a_remedy_and_a_rerun_resumes(model: Path, tmp_path: Path) -> None:
    sent = task(tmp_path / "out", model, recipe(ranks=2, epochs=12))
    process = start(tmp_path / "driver", sent)
    wait_for(tmp_path / "out" / "checkpoints" / "epoch2.json", process)
    rank = next(child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline()))
    rank.send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=3600)
    assert process.returncode != 0 and "run the same command again" in errors
    with Watch(os.getpid()) as watch:
        assert run_gang(sent, 2, 1).numbers.epochs_resumed_from >= 2
    assert watch.listening and not watch.open_to_others, "other machines cannot reach the ranks"


def test_what_a_rank_raised_is_told_unless_a_process_died_first() -> None:
    """Ranks that wait for one that failed are killed; those that wait for one that died raise that they lost it."""
    raised, ended, ours = OSError("raised"), BrokenProcessPool("ended"), SecateurError("ours")
    assert gang._cause([ended, raised], died=False) is raised
    assert gang._cause([ended, raised, ours], died=True) is ours and gang._cause([raised, ours], died=False) is ours
    assert "got a process that died; run the same command again" in str(gang._cause([raised, ended], died=True))
    assert "got a process that died" in str(gang._cause([ended], died=False)), "and its status is not known yet"


def test_an_error_of_one_rank_is_raised_though_the_other_waits_for_it(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "progress.jsonl").mkdir()  # which rank 0 alone reads
    with pytest.raises(IsADirectoryError):
        run_gang(task(tmp_path / "out", model, recipe(ranks=2)), 2, 1)


def test_a_rank_that_died_unnoticed_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool never learns of its death, so its future has no result; that of the other rank waits for it."""
    monkeypatch.setattr(gang, "LOOK_SECONDS", 0.01)
    futures: list[Future[None]] = [Future(), Future()]
    living, dead = SimpleNamespace(is_alive=lambda: True), SimpleNamespace(is_alive=lambda: False)
    assert gang._until_one_fails(futures, [living, dead]) == set(futures)  # type: ignore[list-item]
    futures[0].set_result(None)
    futures[1].set_exception(SecateurError("a rank failed"))
    assert gang._until_one_fails(futures, [living, living]) == set()  # type: ignore[list-item]


@pytest.mark.parametrize("optimizer", list(Optimizer))
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_an_interrupted_training_resumes_with_equal_bytes_at_every_stage(
    stage: int, optimizer: Optimizer, model: Path, tmp_path: Path
) -> None:
    settings = recipe(epochs=4, zero_stage=stage, optimizer=optimizer)
    run_gang(task(tmp_path / "whole", model, settings), 1, 1)
    interrupted(tmp_path / "out", model, settings, after=2)
    record = run_gang(task(tmp_path / "out", model, settings), 1, 1)
    assert record.numbers.epochs_resumed_from == 2 and record.numbers.steps == 32
    assert model_bytes(tmp_path / "out") == model_bytes(tmp_path / "whole")


def test_skipped_steps_are_counted_across_an_interruption(model: Path, tmp_path: Path) -> None:
    settings = recipe(epochs=3)
    with pytest.raises(OSError, match="went away"):
        run_gang(task(tmp_path / "out", model, settings, stripes(nan_steps=[1], fails_in_epoch=2)), 1, 1)
    record = run_gang(task(tmp_path / "out", model, settings, stripes(nan_steps=[1])), 1, 1)
    assert record.numbers.skipped_steps == 3


def test_the_last_two_checkpoints_are_kept_until_the_result_exists(model: Path, tmp_path: Path) -> None:
    interrupted(tmp_path / "out", model, recipe(epochs=5), after=4)
    names = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir() if path.name.startswith("epoch"))
    assert names == ["epoch3", "epoch3.json", "epoch4", "epoch4.json"]
    run_gang(task(tmp_path / "out", model, recipe(epochs=5)), 1, 1)
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_a_training_that_falls_right_after_a_checkpoint_has_told_of_its_epoch(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_and_fall(checkpoints: Checkpoints, epoch: int, progress: dict) -> None:
        save(checkpoints, epoch, progress)
        raise OSError("it fell")

    save = Checkpoints.save
    with monkeypatch.context() as patched, pytest.raises(OSError, match="it fell"):
        patched.setattr(Checkpoints, "save", save_and_fall)
        run_gang(task(tmp_path / "out", model, recipe(epochs=2)), 1, 1)
    record = run_gang(task(tmp_path / "out", model, recipe(epochs=2)), 1, 1)
    assert record.numbers.epochs_resumed_from == 1 and {8, 16} <= set(reported(tmp_path / "out"))


def test_what_was_told_of_an_epoch_is_on_the_disk_before_its_checkpoint(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    before: list[list[int]] = []
    save = Checkpoints.save
    monkeypatch.setattr(loop, "flush", lambda path: flushed.append(json.loads(path.read_text().splitlines()[-1])["step"]))
    monkeypatch.setattr(Checkpoints, "save", lambda *arguments: (before.append([*flushed]), save(*arguments)))
    run_gang(task(tmp_path / "out", model, recipe(epochs=2)), 1, 1)
    assert [steps[-1] for steps in before] == [8, 16]


def flip_a_bit(epoch: Path) -> None:
    file = max((path for path in epoch.rglob("*.pt")), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut_off(epoch: Path) -> None:
    file = next(iter(epoch.rglob("*.pt")))
    file.write_bytes(file.read_bytes()[:100])


def empty_marker(epoch: Path) -> None:
    epoch.with_suffix(".json").write_text("{}")


DAMAGES = [flip_a_bit, cut_off, empty_marker, shutil.rmtree]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("damaged", [(3,), (2, 3)], ids=["newest", "all"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    damage, damaged: tuple[int, ...], model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = recipe(epochs=4, zero_stage=1)
    run_gang(task(tmp_path / "whole", model, settings), 1, 1)
    interrupted(tmp_path / "out", model, settings, after=3)
    for epoch in damaged:
        damage(tmp_path / "out" / "checkpoints" / f"epoch{epoch}")
    record = run_gang(task(tmp_path / "out", model, settings), 1, 1)
    assert record.numbers.epochs_resumed_from == (2 if damaged == (3,) else 0)
    assert [entry.getMessage().count("is damaged") for entry in caplog.records] == [1] * len(damaged)
    assert model_bytes(tmp_path / "out") == model_bytes(tmp_path / "whole")
    steps = reported(tmp_path / "out")
    assert steps == sorted(set(steps))


def test_an_intact_checkpoint_that_cannot_be_read_is_an_error_that_says_what_to_delete(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Going on after half of a state was loaded would train something else."""
    import deepspeed

    interrupted(tmp_path / "out", model, recipe(epochs=3), after=2)

    def fail(*arguments, **options):
        raise RuntimeError("another version")

    monkeypatch.setattr(deepspeed.DeepSpeedEngine, "load_checkpoint", fail)
    with pytest.raises(SecateurError, match=r"another version.*delete .*checkpoints"):
        run_gang(task(tmp_path / "out", model, recipe(epochs=3)), 1, 1)


def test_nothing_is_compiled_and_nothing_is_printed(model: Path, tmp_path: Path) -> None:
    """No compiler can be found, none of DeepSpeed's kernels is built, and its remarks do not reach the terminal."""
    (tmp_path / "extensions").mkdir()
    hidden = {"PATH": str(tmp_path), "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions"), "CXX": "", "CC": ""}
    process = start(tmp_path / "driver", task(tmp_path / "out", model, recipe(ranks=2, zero_stage=2)), **hidden)
    output, errors = process.communicate(timeout=3600)
    assert process.returncode == 0, errors
    assert (output, errors) == ("0\n", "") and not list((tmp_path / "extensions").iterdir())


# --- trainings that diverge


def test_a_training_that_diverges_stops_with_its_last_checkpoint_and_goes_on_from_there(model: Path, tmp_path: Path) -> None:
    """The loss is NaN from step 12 on, for as many steps as an epoch has: it ends in the third epoch, with the weights of step 11."""
    settings = recipe(epochs=4, lr=1e-3)
    with pytest.raises(
        SecateurError, match=r"in the last 8 steps at step 19 of 32; lower the learning rate \(recovery\.lr, or training\.lr"
    ):
        run_gang(task(tmp_path / "out", model, settings, stripes(nan_from=11)), 1, 1)
    assert not (tmp_path / "out" / "record.json").exists() and (tmp_path / "out" / "checkpoints" / "epoch2.json").exists()
    numbers = run_gang(task(tmp_path / "out", model, settings), 1, 1).numbers
    assert (numbers.epochs_resumed_from, numbers.skipped_steps) == (2, 5)


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_weights_that_are_not_finite_are_no_result_and_no_checkpoint(zero_stage: int, model: Path, tmp_path: Path) -> None:
    """One step, whose loss and gradients are finite."""
    sgd = {"optimizer": Optimizer.SGD, "clip_norm": 0.0, "weight_decay": 1e3}
    settings = recipe(epochs=1, batch_size=64, warmup_epochs=0.0, zero_stage=zero_stage, **sgd)
    settings.lr = 3e38
    with pytest.raises(SecateurError, match=r"got weights that are not at step 1 of 1; lower the learning rate"):
        run_gang(task(tmp_path / "out", model, settings), 1, 1)
    assert not list((tmp_path / "out").rglob("*.safetensors")) and not list((tmp_path / "out" / "checkpoints").glob("epoch*"))


def test_a_checkpoint_that_the_disk_does_not_take_is_one_line_and_a_rerun_with_room_has_equal_bytes(model: Path, tmp_path: Path) -> None:
    run_gang(task(tmp_path / "whole", model, recipe()), 1, 1)
    with files_of_at_most(20_000), pytest.raises(SecateurError) as refused:
        run_gang(task(tmp_path / "out", model, recipe()), 1, 1)
    assert str(refused.value).startswith(f"{tmp_path / 'out' / 'checkpoints' / 'epoch1'}: expected a disk that takes the file")
    assert "\n" not in str(refused.value)
    run_gang(task(tmp_path / "out", model, recipe()), 1, 1)
    assert model_bytes(tmp_path / "out") == model_bytes(tmp_path / "whole")
