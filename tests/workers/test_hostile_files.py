"""Model files that are damaged, or that a stranger wrote, are refused in one line: nothing runs, nothing is fetched, memory is bounded."""

import contextlib
import cProfile
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hostile_cases import MASKED, REFUSED, SIZES, of_text

from workers.errors import LONGEST_MESSAGE, ConfigError, SecateurError
from workers.export import load_family, load_masks, load_pruned, load_state, load_weight, save_model
from workers.files import read_metadata, read_tensors, write_tensors
from workers.memory import peak_bytes
from workers.models import bounded, library
from workers.models.exported import Exported
from workers.models.timm import TimmModel

ARGUMENTS = {"img_size": 16, "patch_size": 8, "in_chans": 1, "num_classes": 10, "embed_dim": 32, "depth": 2, "num_heads": 2}
VIT = TimmModel(name="vit_tiny_patch16_224", arguments=ARGUMENTS, checkpoint=None, include=["*"], exclude=[])
OLD = {"format": "secateur/1"}
FORBIDDEN = (
    "socket.connect",
    "socket.getaddrinfo",
    "socket.sendto",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
)

happened: list[str] | None = None  # what Python reports to its audit hook, while a file is read


def _audit(event: str, arguments: tuple) -> None:
    if happened is not None and (event in FORBIDDEN or (event == "import" and arguments[0] in ("trap", "antigravity"))):
        happened.append(f"{event} {arguments}")


sys.addaudithook(_audit)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A tiny ViT with one masked layer, as a file."""
    path = tmp_path_factory.mktemp("written") / "model.safetensors"
    torch.manual_seed(0)
    state = VIT.build().state_dict()
    keep = torch.rand(state[f"{MASKED}.weight"].shape) < 0.5
    state[f"{MASKED}.weight"] *= keep
    save_model(path, VIT, state, {MASKED: keep})
    load_pruned(path)
    return path.read_bytes()


@pytest.fixture
def path(written: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file in a folder with a module that must not be imported, in which every event that must not happen is noted."""
    global happened
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(written)
    happened = []
    yield tmp_path / "model.safetensors"
    happened = None
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.safetensors", "trap.py"]


def refusals(path: Path) -> list[SecateurError]:
    """What everything that reads model files says about one. Any other error, and more than a line, fails."""
    exported = Exported(str(path), ["*"], [])
    readers = [
        lambda: load_pruned(path),
        lambda: load_family(path),
        lambda: load_state(path),
        lambda: load_masks(path),
        lambda: load_weight(path, MASKED),
        exported.check,
        lambda: exported.stored,
        exported.pretrained_state,
    ]
    found = []
    for reader in readers:
        try:
            reader()
        except SecateurError as error:
            found.append(error)
    for error in found:
        assert "\n" not in str(error) and len(str(error)) <= LONGEST_MESSAGE, str(error)
    return found


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_file_is_refused_in_one_line_and_nothing_runs(name: str, path: Path) -> None:
    REFUSED[name](path)
    assert refusals(path), "loaded"
    with pytest.raises(SecateurError, match=path.name):
        load_pruned(path)
    assert happened == []


@pytest.mark.parametrize("name", SIZES)
def test_a_model_that_nothing_can_hold_is_refused_before_it_takes_memory(name: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With smaller limits, which are reached sooner. Each of these models takes gigabytes."""
    monkeypatch.setattr(library, "LARGEST_ARGUMENT", 2**20)
    monkeypatch.setattr(bounded, "MOST_PARAMETERS", 1000)
    monkeypatch.setattr(bounded, "MOST_OPERATIONS", 20_000)
    SIZES[name](path)
    with peak_bytes() as peak:
        before = peak.bytes
        with pytest.raises(SecateurError, match=path.name):
            load_pruned(path)
    assert before is None or peak.bytes - before < 2e8


def test_limits_hold_for_loops_of_python_and_leave_a_profiler_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "MOST_CALLS", 1000)
    seen: list[str] = []

    def profiler(frame: object, event: str, _: object) -> None:
        seen.append(event)

    def endless() -> None:
        while True:
            with contextlib.suppress(Exception):  # as libraries do
                abs(-1)

    sys.setprofile(profiler)
    try:
        with pytest.raises(ConfigError, match="more than 1,000 calls"):
            bounded.bounded(endless)
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)
    assert bounded.bounded(lambda: 3) == 3


def test_a_model_is_loaded_under_cprofile_which_then_goes_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "_kept", set())  # so that building is watched
    with cProfile.Profile() as profiler:
        load_pruned(path)
        refusals(path)
    assert any(entry.code is refusals.__code__ for entry in profiler.getstats())


def test_a_model_is_loaded_under_the_profiler_of_torch(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "_kept", set())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], with_stack=True) as profiler:
        load_pruned(path)(torch.zeros(1, 1, 16, 16))
    assert any(event.key == "aten::addmm" for event in profiler.key_averages())


def test_a_model_whose_weights_follow_takes_no_memory_for_initial_ones_and_a_new_model_has_them(path: Path) -> None:
    large = replace(VIT, arguments=ARGUMENTS | {"embed_dim": 1024, "depth": 12})
    with peak_bytes() as peak, bounded.weights_follow():
        before = peak.bytes
        size = sum(parameter.nbytes for parameter in large.build().parameters())
    assert size > 6e8 and (before is None or peak.bytes - before < size / 4)
    assert VIT.build().norm.weight.equal(torch.ones(32))
    state = torch.get_rng_state()
    load_pruned(path)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_file_of_the_format_without_digests_is_still_read_and_checked_as_far_as_that_goes(path: Path) -> None:
    expected = load_pruned(path).state_dict()
    old = of_text(
        lambda text: json.dumps({key: value for key, value in json.loads(text).items() if key not in ("sha256", "tensors")} | OLD)
    )
    old(path)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_pruned(path).state_dict().items())
    tensors = {name: tensor.clone() for name, tensor in read_tensors(path).items()}
    write_tensors(path, tensors | {f"{MASKED}.weight.mask": torch.zeros(512, dtype=torch.uint8)}, read_metadata(path))
    with pytest.raises(SecateurError, match="keeps 0 weights"):
        load_pruned(path)


def test_a_weight_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    state = VIT.build().state_dict()
    state["head.bias"][3] = torch.nan
    with pytest.raises(SecateurError, match=r"NaN or infinity in head\.bias"):
        save_model(tmp_path / "model.safetensors", VIT, state, {})
    assert not list(tmp_path.iterdir())
