"""Groups of units, each tried on the module it lies in: without units the module does what it does with them silenced, or they stay.

A trace sees what is tied, not whether a silenced unit counts for nothing: a bias after an activation, a mean over channels, or a shape that
is written into the code make it another function. Such groups are left out by name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from workers.models.resize import resize_
from workers.models.structures.groups import DIFFERS, Group, Kind, Size, Slice, home, join, mask_, remainder, take
from workers.models.structures.traced import Entered, Trace

TOLERANCE = 1e-9  # relative to the largest output, in float64
TOLERANCE_FLOAT32 = 1e-4
FLOAT64_PARAMETERS = 200_000_000  # more than these in one module are tried in float32
MOST_JOINED = 4  # groups that are tried together
OWN = (nn.Linear, nn.Conv2d, nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)  # tell their sizes by their tensors


@dataclass(frozen=True, eq=False)
class Checked:
    """Groups that hold, and why the others do not, by name."""

    groups: list[Group]
    left_out: dict[str, str]


def check(build: Callable[[], nn.Module], traced: Trace) -> Checked:
    """Of the groups of ``traced`` those without whose units the model is the one with them silenced.

    ``build`` makes the model; its parameters are never drawn. Modules of one kind and shape are tried once, with random parameters and
    inputs, half of each group out. How a module keeps the number of its heads is tried too.
    """
    model = _built(build)
    known: dict[str, list[Group | str | None]] = {}
    found: dict[str, Group | str | None] = {}
    for name, groups in _by_module(model, traced).items():
        key = _key(model, name, groups, traced)
        if key not in known:
            known[key] = _tried(model, name, groups, traced.entered)
        for group, result in zip(groups, known[key], strict=True):
            found[group.name] = (
                result if not isinstance(result, Group) else replace(_renamed(result, f"{name}." if name else "", 0), name=group.name)
            )
    results = {group.name: found[group.name] for group in traced.groups}
    kept = [result for result in results.values() if isinstance(result, Group)]
    return Checked(kept, {name: result for name, result in results.items() if isinstance(result, str)})


def _built(build: Callable[[], nn.Module]) -> nn.Module:
    """Without memory for its parameters, unless it works on their values when it is built."""
    try:
        with _without_parameters():
            return build().eval()
    except Exception:  # whatever a foreign model raises
        return build().eval()


@contextmanager
def _without_parameters() -> Iterator[None]:
    """Modules that are built have their parameters on the meta device, and their buffers where they belong."""
    register = nn.Module.register_parameter

    def empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    nn.Module.register_parameter = empty  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _by_module(model: nn.Module, traced: Trace) -> dict[str, list[Group]]:
    """Groups by the innermost module with a call of its own that holds all of their tensors."""
    found: dict[str, list[Group]] = {}
    for group in traced.groups:
        name = home(group)
        while name and name not in traced.entered:
            name = name.rpartition(".")[0]
        found.setdefault(name, []).append(group)
    return found


def _key(model: nn.Module, name: str, groups: Sequence[Group], traced: Trace) -> str:
    """All that the result of trying depends on."""
    module, start = model.get_submodule(name), len(name) + 1 if name else 0
    tensors = [(key, tuple(tensor.shape)) for key, tensor in chain(module.named_parameters(), module.named_buffers())]
    slices = [[(part.tensor[start:], part.dim, part.index_UK.tolist()) for part in group.slices] for group in groups]
    given = tree_map(
        lambda value: (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else type(value), traced.entered[name].args
    )
    return repr((type(module), tensors, slices, given, repr(module)))


def _tried(model: nn.Module, name: str, groups: list[Group], entered: Mapping[str, Entered]) -> list[Group | str | None]:
    """For each group itself as it holds (with names from the module on), or why it does not; None if another one took it in."""
    trial = _Trial(model, name, entered[name])
    own = [_renamed(group, "", len(name) + 1 if name else 0) for group in groups]
    ways = [list(_ways(trial.module, group)) for group in own]
    firsts = [way[0] for way in ways]
    if trial.fails(firsts) is None:
        held: list[Group | str | None] = list(firsts)
    else:
        held = _joined(trial, own, [_first_that_holds(trial, way) for way in ways])
        together = [group for group in held if isinstance(group, Group)]
        if together and (reason := trial.fails(together)) is not None:
            held = [f"not together with others of its module: {reason}" if isinstance(group, Group) else group for group in held]
    free = [group for group in held if isinstance(group, Group) and group.kind in (Kind.HEAD, Kind.NEURON)]
    if free and trial.fails(free, empty=True) is not None:
        free = [group for group in free if trial.fails([group], empty=True) is None]
    names = {group.name for group in free}
    return [replace(group, least=0 if group.name in names else 1) if isinstance(group, Group) else group for group in held]


def _joined(trial: _Trial, own: Sequence[Group], held: list[Group | str]) -> list[Group | str | None]:
    """Groups that hold only together, since one number of their module tells the units of both: the first takes the others in."""
    held_: list[Group | str | None] = list(held)
    alone = [index for index, group in enumerate(held) if isinstance(group, str)]
    for units in dict.fromkeys(own[index].units for index in alone):
        together = [index for index in alone if own[index].units == units]
        for chosen in (together, *combinations(together, 2)) if 1 < len(together) <= MOST_JOINED else ():
            if any(not isinstance(held_[index], str) for index in chosen):
                continue
            found = _first_that_holds(trial, list(_ways(trial.module, join([own[index] for index in chosen]))))
            if isinstance(found, Group):
                first, *others = chosen
                held_[first] = found
                for index in others:
                    held_[index] = None
    return held_


def _first_that_holds(trial: _Trial, ways: Sequence[Group]) -> Group | str:
    reasons = []
    for way in ways:
        reason = trial.fails([way])
        if reason is None:
            return way
        reasons.append(reason)
    return next((reason for reason in reasons if DIFFERS in reason), reasons[0])


def _renamed(group: Group, prefix: str, start: int) -> Group:
    """With other names of tensors and modules: from ``start`` on, behind ``prefix``."""

    def parts(listed: Iterable[Slice]) -> tuple[Slice, ...]:
        return tuple(replace(part, tensor=prefix + part.tensor[start:]) for part in listed)

    sizes = tuple(Size(prefix + size.name[start:], size.of_unit) for size in group.sizes)
    narrow = tuple((prefix + name[start:]).rstrip(".") for name in group.narrow)
    produced, consumed, running = (parts(listed) for listed in (group.produced, group.consumed, group.running))
    return replace(group, produced=produced, consumed=consumed, running=running, sizes=sizes, narrow=narrow)


def _ways(module: nn.Module, group: Group) -> Iterator[Group]:
    """In which numbers of its modules a group may show, likeliest first."""
    around, inner = _around(module, group)
    numbers = [(f"{name}.{key}" if name else key, key, value) for name, owner in around for key, value in _whole_numbers(owner)]
    counts = [Size(name, 1) for name, key, value in numbers if value == group.units and ("head" in key or "group" in key)]
    places = [Size(name, 1) for name, key, value in numbers if value == group.units and "[" in key]
    parts = _parts(module, around, group)
    widths_ = {group.units * part.index_UK.shape[1]: part.index_UK.shape[1] for part in group.slices}
    taken = {size.name for size in counts}
    widths = [Size(name, widths_[value]) for name, _, value in numbers if value in widths_ and name not in taken]
    plain = [counts, []] if group.kind is Kind.HEAD else [[], counts]
    options: list[tuple[list[Size], tuple[str, ...]]] = []
    for sizes in plain:
        options += [(sizes, ()), ([*sizes, *widths], ()), ([*sizes, *places], ()), (parts, ())]
    options += [([*counts, *more], (inner,)) for more in ([], widths) if counts]
    seen = []
    for sizes, narrow in options:
        if (sizes, narrow) not in seen:
            seen.append((sizes, narrow))
            yield replace(group, sizes=(*group.sizes, *sizes), narrow=narrow)


def _around(module: nn.Module, group: Group) -> tuple[list[tuple[str, nn.Module]], str]:
    """The modules above the group's tensors, and the name of the innermost that holds all of them."""
    names = {""}
    for part in group.slices:
        path = part.tensor.split(".")[:-1]
        names |= {".".join(path[:length]) for length in range(1, len(path) + 1)}
    around = [(name, owner) for name in sorted(names) if not isinstance(owner := module.get_submodule(name), OWN)]
    inner = home(group)
    while isinstance(module.get_submodule(inner), OWN):
        inner = inner.rpartition(".")[0]
    return around, inner


def _whole_numbers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """By the name of the attribute, and its index if it holds several."""
    for key, value in vars(module).items():
        if not key.startswith("_") and type(value) is int:
            yield key, value
        elif not key.startswith("_") and isinstance(value, list | tuple) and all(type(part) is int for part in value):
            yield from ((f"{key}[{index}]", part) for index, part in enumerate(value))


def _parts(module: nn.Module, around: Sequence[tuple[str, nn.Module]], group: Group) -> list[Size]:
    """Sizes of the parts that an output of the group's first layer is split into, where a module keeps them as a list."""
    part = group.produced[0]
    whole = module.get_parameter(part.tensor).shape[part.dim]
    for name, owner in around:
        for key, value in vars(owner).items():
            if isinstance(value, list | tuple) and len(value) > 1 and all(type(size) is int for size in value) and sum(value) == whole:
                ends = torch.tensor(value).cumsum(0)
                of_UK = torch.bucketize(part.index_UK, ends, right=True)
                counts_UP = torch.stack([(of_UK == index).sum(1) for index in range(len(value))], dim=1)
                if bool((counts_UP == counts_UP[0]).all()):
                    prefix = f"{name}.{key}" if name else key
                    return [Size(f"{prefix}[{index}]", int(count)) for index, count in enumerate(counts_UP[0]) if count]
    return []


class _Trial:
    """A module with random parameters, and random inputs of the shapes that it was called with."""

    def __init__(self, model: nn.Module, name: str, entered: Entered) -> None:
        self.module = copy.deepcopy(model.get_submodule(name))
        self.generator = torch.Generator().manual_seed(0)
        count = sum(parameter.numel() for parameter in self.module.parameters())
        self.dtype = torch.float64 if count <= FLOAT64_PARAMETERS else torch.float32
        self.tolerance = TOLERANCE if self.dtype is torch.float64 else TOLERANCE_FLOAT32
        self._draw()
        self.args, self.kwargs = tree_map(self._input, entered.args), tree_map(self._input, entered.kwargs)
        self.state = {key: tensor.clone() for key, tensor in self.module.state_dict().items()}

    def _draw(self) -> None:
        for owner in self.module.modules():
            for key, parameter in owner._parameters.items():
                if parameter is not None:
                    drawn = self._normal(parameter.shape)
                    fan_in = max(1, parameter[0].numel()) if parameter.ndim > 1 else 1
                    values = drawn / fan_in**0.5 if parameter.ndim > 1 else 0.2 * drawn + (0.0 if key == "bias" else 1.0)
                    owner._parameters[key] = nn.Parameter(values, requires_grad=False)
            for key, buffer in owner._buffers.items():
                if buffer is not None and buffer.is_floating_point():
                    values = buffer.to(self.dtype) if not buffer.is_meta else torch.zeros(buffer.shape, dtype=self.dtype)
                    if key.endswith("running_mean"):
                        values = 0.2 * self._normal(buffer.shape)
                    elif key.endswith("running_var"):
                        values = 0.8 + 0.7 * torch.rand(buffer.shape, generator=self.generator, dtype=self.dtype)
                    owner._buffers[key] = values

    def _normal(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=self.generator, dtype=self.dtype)

    def _input(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return self._normal(value.shape) if value.is_floating_point() else torch.zeros(value.shape, dtype=value.dtype)

    def fails(self, groups: Sequence[Group], empty: bool = False) -> str | None:
        """Why the module without half of the units of ``groups`` (or all of them) is not the one with them silenced; None if it is."""
        kept = {group.name: self._half(group.units, empty) for group in groups}
        try:
            with torch.no_grad():
                found = self._outputs(self._smaller(groups, kept))  # first, since most that do not hold end there
                expected = self._outputs(self._silenced(groups, kept))
        except Exception as error:  # whatever a foreign module raises
            return f"without units: {' '.join(str(error).split())[:120] or type(error).__name__}"
        if [part.shape for part in expected] != [part.shape for part in found]:
            return "the output has another shape"
        if not all(bool(part.isfinite().all()) for part in (*expected, *found)):
            return "the output is not finite"
        largest = max((float(part.abs().max()) for part in expected if part.numel()), default=0.0)
        off = max((float((part - other).abs().max()) for part, other in zip(expected, found, strict=True) if part.numel()), default=0.0)
        if off <= self.tolerance * largest:
            return None
        return f"{DIFFERS} by {off / largest:.1e}" if largest else "the output is nothing"

    def _half(self, units: int, empty: bool) -> Tensor:
        if empty:
            return torch.zeros(units, dtype=torch.bool)
        order = torch.randperm(units, generator=self.generator)
        return torch.zeros(units, dtype=torch.bool).index_fill_(0, order[: max(1, units // 2)], True)

    def _silenced(self, groups: Sequence[Group], kept: Mapping[str, Tensor]) -> nn.Module:
        silenced = copy.deepcopy(self.module)  # which never runs itself: some modules remember what they computed
        mask_(dict(silenced.named_parameters()), groups, kept)
        return silenced

    def _smaller(self, groups: Sequence[Group], kept: Mapping[str, Tensor]) -> nn.Module:
        state, smaller = take(self.state, groups, kept), copy.deepcopy(self.module)
        shapes = {key: list(tensor.shape) for key, tensor in state.items() if tensor.shape != self.state[key].shape}
        left = remainder(smaller, groups, kept)
        resize_(smaller, shapes | left.shapes, left.sizes, left.narrow)
        smaller.load_state_dict(state)
        return smaller

    def _outputs(self, module: nn.Module) -> list[Tensor]:
        args, kwargs = copy.deepcopy((self.args, self.kwargs))  # some modules work in place
        output = module(*args, **kwargs)
        return [part.to(self.dtype) for part in tree_flatten(output)[0] if isinstance(part, Tensor) and part.dtype is not torch.bool]
