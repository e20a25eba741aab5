"""Checkpoint files of other programs: read without running their code, and searched for the tensors of a model."""

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

from workers.checks import Phrase, require
from workers.errors import ConfigError, SecateurError

State = dict[str, Tensor]

AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?)([._]|$)")  # in the name of a dict: averaged weights, which are preferred, as in timm
CANDIDATES = 8  # most prefixes that are compared with the model


class Ignored:
    """A placeholder for objects in checkpoints that are not tensors. It ignores all of their content."""

    def __new__(cls, *_: object) -> Ignored:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


# Types that torch does not load by itself but that files may contain: command lines and numbers of NumPy, as in timm's checkpoints. Their
# code does not run: each becomes an ``Ignored``.
ALLOWED = ("argparse.Namespace", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")


def read(path: Path) -> dict[str, Any]:
    """Returns the content of a file. Raises: ConfigError if it is not a checkpoint, or contains more than tensors and plain values."""
    if path.suffix == ".safetensors":
        from workers.export import load_state
        from workers.files import read_metadata, read_tensors

        try:
            return load_state(path)[0] if "secateur" in read_metadata(path) else read_tensors(path)
        except SecateurError as error:
            raise ConfigError(f"model.checkpoint: {error}") from error
    with torch.serialization.safe_globals([(Ignored, name) for name in ALLOWED]):
        try:
            zipped = zipfile.is_zipfile(path)
            if zipped:
                _require_not_compressed(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        except ConfigError:
            raise
        except pickle.UnpicklingError as error:
            raise ConfigError(
                f"model.checkpoint: expected a torch file of tensors and plain values, got {path}{_other_types(path)}; loading other "
                "objects could run code: if you trust the file, load it yourself and save its state_dict as safetensors"
            ) from error
        except Exception as error:  # of any class: a damaged file may fail anywhere
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise ConfigError(f"model.checkpoint: expected a readable torch file, got {path} ({reason})") from error


def _require_not_compressed(path: Path) -> None:
    """Raises ``ConfigError`` for a zip file that unpacks to more than its size, as torch writes none: that may be any size."""
    with zipfile.ZipFile(path) as file:
        unpacked = sum(part.file_size for part in file.infolist())
    got = Phrase(f"{unpacked:,} bytes in {path} of {path.stat().st_size:,} bytes")
    require(unpacked <= path.stat().st_size, "model.checkpoint", "a torch file, which is not compressed", got)


def _other_types(path: Path) -> str:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:
        return ""  # the content can be listed for zip files only
    return f", which contains {', '.join(sorted(names)[:3])}" if names else ""


@dataclass(frozen=True)
class Fit:
    """The tensors of a checkpoint, by the names of the model, and the names by which both differ."""

    state: State
    missing: list[str]
    unexpected: list[str]
    differing: list[str]  # names of tensors that have another shape
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        return not self.missing and not self.differing


def find(content: Any, expected: Mapping[str, Tensor], convert: Callable[[State], State], checkpoint: str) -> Fit:
    """Returns the part of a checkpoint that fits the model best: all tensors whose names start with one prefix.

    The prefix is found by comparing names with ``expected``. Nested dicts count as parts of names, so that a wrapping ``state_dict`` and a
    leading ``module.`` are treated alike. Parts of names that start with an underscore and do not occur in the model (``_orig_mod``) are
    ignored. Averaged weights are preferred. ``convert`` replaces old names by current ones.
    Raises: ConfigError if there are no tensors, or if several parts fit and differ. A part that does not fit is returned too.
    """
    tensors, dicts = _flattened(content)
    got = Phrase(f"{type(content).__name__} in {checkpoint}")
    require(bool(tensors), "model.checkpoint", "a dict of tensors, possibly inside other dicts", got)
    tensors = _unwrapped(tensors, {part for name in expected for part in name.split(".")})
    fits = {prefix: _fit(_under(prefix, tensors), expected, convert) for prefix in _prefixes(tensors, dicts, expected)}
    complete = [prefix for prefix, fit in fits.items() if fit.complete]
    exact = [prefix for prefix in complete if not fits[prefix].unexpected]
    # A part of a set of weights that fits exactly is no set of its own.
    complete = [prefix for prefix in complete if not any(prefix != outer and prefix.startswith(outer) for outer in exact)]
    averaged = [prefix for prefix in complete if AVERAGED.search(_dict_of(prefix, dicts).rstrip("."))]
    best = max(fits, key=lambda prefix: len(expected) - len(fits[prefix].missing + fits[prefix].differing))
    chosen = next(iter(averaged or complete), best)
    fit = fits[chosen]
    others = [prefix for prefix in complete if prefix != chosen]
    rivals = [prefix for prefix in others if prefix in (averaged or complete) and not _equal(fits[prefix].state, fit.state)]
    if rivals:
        names = " and ".join(_described(prefix, dicts) for prefix in [chosen, *rivals])
        raise ConfigError(
            f"model.checkpoint: expected one set of weights for the model in {checkpoint}, got {1 + len(rivals)} that fit equally: "
            f"{names}; save the right one as a separate file"
        )
    return Fit(fit.state, fit.missing, fit.unexpected, fit.differing, _notes(chosen, others, tensors, dicts, checkpoint))


def _flattened(content: Any) -> tuple[State, set[str]]:
    """Returns all tensors by the names of their dicts, joined by dots, and these dicts as prefixes."""
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
    """Returns names without the parts that torch.compile, FSDP and activation checkpointing insert; unchanged if two would be equal."""
    names = {".".join(part for part in name.split(".") if part in known or not part.startswith("_")): name for name in tensors}
    return {short: tensors[name] for short, name in names.items()} if len(names) == len(tensors) else tensors


def _prefixes(tensors: State, dicts: Collection[str], expected: Collection[str]) -> list[str]:
    """Returns the prefixes of names of the model, the most frequent first; if there are none, the dict with the most tensors."""
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


def _fit(state: State, expected: Mapping[str, Tensor], convert: Callable[[State], State]) -> Fit:
    state = convert(state)
    return Fit(
        state,
        missing=[name for name in expected if name not in state],
        unexpected=[name for name in state if name not in expected],
        differing=[name for name in expected if name in state and state[name].shape != expected[name].shape],
    )


def _equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def _dict_of(prefix: str, dicts: Collection[str]) -> str:
    return max((outer for outer in dicts if prefix.startswith(outer)), key=len)


def _described(prefix: str, dicts: Collection[str]) -> str:
    """Returns a prefix as messages show it, such as ``state_dict: model.*``."""
    inside = _dict_of(prefix, dicts)
    return ": ".join(filter(None, [inside.rstrip("."), f"{prefix[len(inside) :]}*" if prefix != inside or not inside else ""]))


def _notes(chosen: str, others: list[str], tensors: State, dicts: Collection[str], checkpoint: str) -> tuple[str, ...]:
    """Returns a sentence about what was not loaded: other tensors of the same dict, and other sets of weights of the model."""
    inside = _dict_of(chosen, dicts)
    beside = Counter(
        name.removeprefix(inside).split(".")[0] + (".*" if "." in name.removeprefix(inside) else "")
        for name in tensors
        if name.startswith(inside) and not name.startswith(chosen) and _dict_of(name, dicts) == inside
    )
    left_out = [f"{name} ({count})" for name, count in beside.items()] + [
        f"{_described(prefix, dicts)} (also weights of this model)" for prefix in others
    ]
    if not left_out:
        return ()
    more = f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""
    return (f"model.checkpoint: loaded {_described(chosen, dicts)} from {checkpoint}; left out: {', '.join(left_out[:5])}{more}",)
