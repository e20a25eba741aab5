"""Foreign checkpoint files: read without running foreign code, and searched for the tensors of a model, whatever they are wrapped in."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workers.checks import require
from workers.errors import ConfigError, SecateurError

State = dict[str, Tensor]

AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?)([._]|$)")  # in the name of a dict: averaged weights, which are preferred as timm does
CANDIDATES = 8  # prefixes that are looked at closely


class Ignored:
    """Stands in for what checkpoints hold beside tensors: whatever it is made of, nothing of it is looked at."""

    def __new__(cls, *_: object) -> Ignored:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


# What may be in a file beside what torch reads by itself: command lines and numbers of NumPy, as timm's training leaves them. Their own
# code does not run: each becomes an ``Ignored``.
ALLOWED = ("argparse.Namespace", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")


def read(path: Path) -> dict[str, Any]:
    """What a file holds. Raises: ConfigError if it is no checkpoint, or holds anything but tensors and plain values."""
    if path.suffix == ".safetensors":
        from workers.export import load_state
        from workers.files import read_metadata, read_tensors

        try:
            return load_state(path)[0] if "secateur" in read_metadata(path) else read_tensors(path)
        except SecateurError as error:
            raise ConfigError(f"model.checkpoint: {error}") from error
    with torch.serialization.safe_globals([(Ignored, name) for name in ALLOWED]):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except pickle.UnpicklingError as error:
            raise ConfigError(
                f"model.checkpoint: {path} is no torch file of tensors and plain values{_refused(path)}, and nothing else is read, since "
                "that could run code; where you trust it, load it yourself and save its state_dict as safetensors"
            ) from error
        except (RuntimeError, EOFError, OSError, ValueError) as error:
            raise ConfigError(f"model.checkpoint: {path} is not a readable torch file: {' '.join(str(error).split())[:160]}") from error


def _refused(path: Path) -> str:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:
        return ""  # no zip file: what is in it cannot be listed
    return f" (it holds {', '.join(sorted(names)[:3])})" if names else ""


@dataclass(frozen=True)
class Found:
    """Tensors of a checkpoint for a model, under the model's names as far as they fit, and what was left beside them."""

    state: State
    missing: list[str]
    unexpected: list[str]
    differing: list[str]  # of other shapes
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        return not self.missing and not self.differing


def find(content: Any, expected: Mapping[str, Tensor], convert: Callable[[State], State], checkpoint: str) -> Found:
    """The part of a checkpoint that is the model: all names that begin with one prefix, which is found by comparing with ``expected``.

    Dicts inside dicts count as parts of names, so that a wrapping ``state_dict`` and a leading ``module.`` are one and the same. Names that
    begin with an underscore and that the model does not know (``_orig_mod``) are passed over wherever they stand. Averaged weights go
    before others. ``convert`` brings old names under those of today.
    Raises: ConfigError if there are no tensors, or several parts fit and differ. A part that does not fit is returned as it is.
    """
    tensors, dicts = _flattened(content)
    require(bool(tensors), "model.checkpoint", "a dict of tensors, alone or inside other dicts", type(content).__name__, checkpoint)
    tensors = _unwrapped(tensors, {part for name in expected for part in name.split(".")})
    fits = {prefix: _fit(_under(prefix, tensors), expected, convert) for prefix in _prefixes(tensors, dicts, expected)}
    whole = [prefix for prefix, fit in fits.items() if fit.complete]
    exact = [prefix for prefix in whole if not fits[prefix].unexpected]
    whole = [prefix for prefix in whole if not any(prefix != outer and prefix.startswith(outer) for outer in exact)]  # parts of the model
    averaged = [prefix for prefix in whole if AVERAGED.search(_dict_of(prefix, dicts).rstrip("."))]
    taken = (averaged or whole)[:1] or [max(fits, key=lambda prefix: len(expected) - len(fits[prefix].missing + fits[prefix].differing))]
    fit = fits[taken[0]]
    others = [prefix for prefix in whole if prefix != taken[0]]
    rivals = [prefix for prefix in others if prefix in (averaged or whole) and not _equal(fits[prefix].state, fit.state)]
    if rivals:
        names = " and ".join(_shown(prefix, dicts) for prefix in [*taken, *rivals])
        raise ConfigError(
            f"model.checkpoint: expected one set of weights for the model in {checkpoint}, got {1 + len(rivals)} that fit equally: "
            f"{names}; save the one that you mean as a file of its own"
        )
    return Found(fit.state, fit.missing, fit.unexpected, fit.differing, _notes(taken[0], others, tensors, dicts, checkpoint))


def _flattened(content: Any) -> tuple[State, set[str]]:
    """All tensors by the names of the dicts that they are in, joined by dots; and these dicts, as prefixes."""
    tensors: State = {}
    dicts: set[str] = set()

    def walk(part: Any, prefix: str) -> None:
        dicts.add(prefix)
        for key, entry in part.items():
            if isinstance(key, str) and isinstance(entry, Tensor):
                tensors[prefix + key] = entry
            elif isinstance(key, str) and isinstance(entry, dict):
                walk(entry, f"{prefix}{key}.")

    if isinstance(content, dict):
        walk(content, "")
    return tensors, dicts


def _unwrapped(tensors: State, known: Collection[str]) -> State:
    """Names without the parts that torch.compile, FSDP and activation checkpointing put between; as they are if two become one."""
    found = {".".join(part for part in name.split(".") if part in known or not part.startswith("_")): name for name in tensors}
    return {short: tensors[name] for short, name in found.items()} if len(found) == len(tensors) else tensors


def _prefixes(tensors: State, dicts: Collection[str], expected: Collection[str]) -> list[str]:
    """What stands before names of the model, the most frequent first; if nothing does, the dict with the most tensors."""
    counts: Counter[str] = Counter()
    for name in tensors:
        counts.update(name[:start] for start in _starts(name) if name[start:] in expected)
    if not counts:
        counts.update(_dict_of(name, dicts) for name in tensors)
        return [counts.most_common(1)[0][0]]
    most = counts.most_common(1)[0][1]
    return [prefix for prefix, count in counts.most_common(CANDIDATES) if count >= most / 2]


def _starts(name: str) -> Iterator[int]:
    yield 0
    yield from (match.end() for match in re.finditer(r"\.", name))


def _under(prefix: str, tensors: State) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _fit(state: State, expected: Mapping[str, Tensor], convert: Callable[[State], State]) -> Found:
    state = convert(state)
    return Found(
        state,
        missing=[name for name in expected if name not in state],
        unexpected=[name for name in state if name not in expected],
        differing=[name for name in expected if name in state and state[name].shape != expected[name].shape],
    )


def _equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def _dict_of(prefix: str, dicts: Collection[str]) -> str:
    return max((outer for outer in dicts if prefix.startswith(outer)), key=len)


def _shown(prefix: str, dicts: Collection[str]) -> str:
    """``state_dict: model.*``"""
    inside = _dict_of(prefix, dicts)
    return ": ".join(filter(None, [inside.rstrip("."), f"{prefix[len(inside) :]}*" if prefix != inside or not inside else ""]))


def _notes(taken: str, others: list[str], tensors: State, dicts: Collection[str], checkpoint: str) -> tuple[str, ...]:
    """What was left out: beside the names that were taken, and other sets of weights of the model."""
    inside = _dict_of(taken, dicts)
    beside = Counter(
        name.removeprefix(inside).split(".")[0] + (".*" if "." in name.removeprefix(inside) else "")
        for name in tensors
        if name.startswith(inside) and not name.startswith(taken) and _dict_of(name, dicts) == inside
    )
    left = [f"{name} ({count})" for name, count in beside.items()] + [
        f"{_shown(prefix, dicts)} (weights of this model, too)" for prefix in others
    ]
    if not left:
        return ()
    more = f" and {len(left) - 5} more" if len(left) > 5 else ""
    return (f"model.checkpoint: {_shown(taken, dicts)} was taken from {checkpoint}; left out: {', '.join(left[:5])}{more}",)
