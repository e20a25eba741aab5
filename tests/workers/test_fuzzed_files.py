"""Random damage and random specs: a model file is loaded as it was written, or refused in one line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_cases import MASKED, SHRUNK, WIDENED, around, parts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_file_cases import rewritten

from workers.errors import SecateurError
from workers.export import load_pruned, save_model
from workers.models.timm import TimmModel

ARGUMENTS = {"img_size": 16, "patch_size": 8, "in_chans": 1, "num_classes": 10, "embed_dim": 32, "depth": 2, "num_heads": 2}
VIT = TimmModel(name="vit_tiny_patch16_224", arguments=ARGUMENTS, checkpoint=None, include=["*"], exclude=[])
NUMBERS = [0, -1, 1, 7, 10**4, 2**22, 2**31 - 1, 2**40, 0.5, -1e300, 1e300]
VALUES = [
    *NUMBERS,
    None,
    True,
    "",
    "a",
    "os.system",
    "workers.models.timm.TimmModel",
    "\x1b]0;a\x07\n",
    [],
    {},
    [[]],
    {"a": {"b": [1]}},
    "é" * 999,
]
Place = tuple[Any, ...]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of a tiny ViT with a masked layer: alone, shrunk and widened."""
    folder = tmp_path_factory.mktemp("fuzzed")
    torch.manual_seed(0)
    state = VIT.build().state_dict()
    keep = torch.rand(state[f"{MASKED}.weight"].shape) < 0.5
    state[f"{MASKED}.weight"] *= keep
    for name in ("plain", "shrunk", "widened"):
        save_model(folder / name, VIT, state, {MASKED: keep})
    around(SHRUNK, shapes={"head.bias": [10]}, sizes={"blocks.0.attn.num_heads": 2}, narrow={"blocks.1.attn": [2, 2]})(folder / "shrunk")
    around(WIDENED, widths={"blocks.1.mlp": 1.0}, input_shape=[1, 16, 16])(folder / "widened")
    for name in ("plain", "shrunk", "widened"):
        load_pruned(folder / name)
    return folder


def loaded(path: Path) -> dict[str, torch.Tensor] | None:
    """The tensors of the model in a file; None if it was refused as it should be. Any other error fails."""
    try:
        return load_pruned(path).state_dict()
    except SecateurError as error:
        assert str(error).isprintable() and path.name in str(error)
        return None


def damaged_bytes_are_found(folder: Path, changes: list[tuple[float, int]], stop: float | None) -> None:
    """Positions are fractions of the file; every second one is in the header."""
    content = bytearray((folder / "plain").read_bytes())
    header = len(content) - len(parts(bytes(content))[1])
    for index, (position, value) in enumerate(changes):
        content[int(position * ((header if index % 2 == 0 else len(content)) - 1))] = value
    (folder / "damaged").write_bytes(content[: None if stop is None else int(stop * len(content))])
    state = loaded(folder / "damaged")
    expected = load_pruned(folder / "plain").state_dict()
    assert state is None or all(torch.equal(tensor, state[name]) for name, tensor in expected.items())


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """The places of all parts of a JSON value."""
    yield at
    for key, entry in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(entry, (*at, key))


def changed(value: Any, place: Place, how: str, new: Any) -> Any:
    """The value with another part at a place: ``new``, nothing, or ``new`` beside it."""
    if not place:
        return new if how == "replace" else value
    owner = value
    for key in place[:-1]:
        owner = owner[key]
    if how == "remove":
        del owner[place[-1]]
    elif how == "add" and isinstance(owner, dict):
        owner[str(new)] = owner[place[-1]]
    else:
        owner[place[-1]] = new
    return value


def wrong_specs_are_refused(folder: Path, name: str, changes: list[tuple[float, str, Any]]) -> None:
    """The digests fit, as those of a stranger do."""

    def spec(entries: dict) -> dict:
        entries = json.loads(json.dumps(entries))
        for position, how, new in changes:
            there = list(places(entries))
            entries = changed(entries, there[int(position * (len(there) - 1))], how, json.loads(json.dumps(new)))
        return entries if isinstance(entries, dict) else {"settings": entries}

    (folder / "wrong").write_bytes((folder / name).read_bytes())
    loaded(rewritten(folder / "wrong", spec=spec))


POSITION = st.floats(0, 1)
BYTES = given(st.lists(st.tuples(POSITION, st.integers(0, 255)), max_size=4), st.none() | POSITION)
SPECS = given(
    st.sampled_from(["plain", "shrunk", "widened"]),
    st.lists(st.tuples(POSITION, st.sampled_from(["replace", "remove", "add"]), st.sampled_from(VALUES)), min_size=1, max_size=3),
)


def examples(count: int) -> settings:
    shared = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=count, derandomize=count < 1000, deadline=None, database=None, suppress_health_check=shared)


def test_damaged_bytes_are_found(folder: Path) -> None:
    examples(60)(BYTES(lambda changes, stop: damaged_bytes_are_found(folder, changes, stop)))()


def test_wrong_specs_are_refused(folder: Path) -> None:
    examples(60)(SPECS(lambda name, changes: wrong_specs_are_refused(folder, name, changes)))()


@pytest.mark.slow
def test_damaged_bytes_are_found_for_minutes(folder: Path) -> None:
    examples(5000)(BYTES(lambda changes, stop: damaged_bytes_are_found(folder, changes, stop)))()


@pytest.mark.slow
def test_wrong_specs_are_refused_for_minutes(folder: Path) -> None:
    examples(3000)(SPECS(lambda name, changes: wrong_specs_are_refused(folder, name, changes)))()
