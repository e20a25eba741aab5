"""Model files that are damaged, or that a stranger wrote, are refused in one line: nothing runs, nothing is fetched, memory is bounded."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hostile_cases import BYTES, FAMILY, MASKED, SIZES, SPEC, TENSORS, Case

from workers.errors import SecateurError
from workers.export import load_family, load_masks, load_pruned, load_state, load_weight, save_model
from workers.memory import peak_bytes
from workers.models import bounded
from workers.models.exported import Exported
from workers.models.timm import TimmModel

ARGUMENTS = {"img_size": 16, "patch_size": 8, "in_chans": 1, "num_classes": 10, "embed_dim": 32, "depth": 2, "num_heads": 2}
VIT = TimmModel(name="vit_tiny_patch16_224", arguments=ARGUMENTS, checkpoint=None, include=["*"], exclude=[])
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
        assert "\n" not in str(error) and len(str(error)) < 1000, str(error)
    return found


@pytest.mark.parametrize("kind, name", [(kind, name) for kind in ("BYTES", "SPEC", "TENSORS", "FAMILY") for name in globals()[kind]])
def test_a_hostile_file_is_refused_in_one_line_and_nothing_runs(kind: str, name: str, path: Path) -> None:
    case: Case = globals()[kind][name]
    case(path)
    assert refusals(path), "loaded"
    with pytest.raises(SecateurError, match=str(path.name)):
        load_pruned(path)
    assert happened == []
