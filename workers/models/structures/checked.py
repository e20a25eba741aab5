"""The trial of each group of units: a module without units has to have the outputs of the module with these units silenced.

A trace shows which positions are tied, but not whether a silenced unit has no effect. A bias after an activation, a mean over channels, or
a shape that is written into the code change the function. Groups for which that is so are left out, with the reason.
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
FLOAT64_PARAMETERS = 200_000_000  # a module with more parameters is tried in float32
MOST_JOINED = 4  # groups that are tried together
SELF_SIZED = (nn.Linear, nn.Conv2d, nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)  # whose sizes follow from their tensors


@dataclass(frozen=True, eq=False)
class Checked:
    """The groups whose units can be removed, and by name the reasons why the others are left out."""

    groups: list[Group]
    left_out: dict[str, str]


def check(build: Callable[[], nn.Module], traced: Trace) -> Checked:
    """Returns the groups of ``traced`` that pass their trial: the model without units equals the model with these units silenced.

    ``build`` builds the model; the values of its parameters are not used. Modules of the same class and shapes are tried once, with random
    parameters and inputs, and with half of the units of each group. The numbers of heads that modules keep are found by trial too.
    """
    model = _built(build)
    known: dict[str, list[Group | str | None]] = {}
    by_name: dict[str, Group | str | None] = {}
    for name, groups in _by_module(model, traced).items():
        key = _key(model, name, groups, traced)
        if key not in known:
            known[key] = _tried(model, name, groups, traced.entered)
        for group, result in zip(groups, known[key], strict=True):
            by_name[group.name] = (
                result if not isinstance(result, Group) else replace(_renamed(result, f"{name}." if name else "", 0), name=group.name)
            )
    results = {group.name: by_name[group.name] for group in traced.groups}
    passed = [result for result in results.values() if isinstance(result, Group)]
    return Checked(passed, {name: result for name, result in results.items() if isinstance(result, str)})


def _built(build: Callable[[], nn.Module]) -> nn.Module:
    """Returns the model without memory for its parameters, unless its constructor needs their values."""
    try:
        with _without_parameters():
            return build().eval()
    except Exception:  # a model may raise anything
        return build().eval()


@contextmanager
def _without_parameters() -> Iterator[None]:
    """A context in which new modules have their parameters on the meta device and their buffers on the usual device."""
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
    """Returns the groups by the innermost module that was called and holds all of their tensors."""
    by_module: dict[str, list[Group]] = {}
    for group in traced.groups:
        name = home(group)
        while name and name not in traced.entered:
            name = name.rpartition(".")[0]
        by_module.setdefault(name, []).append(group)
    return by_module


def _key(model: nn.Module, name: str, groups: Sequence[Group], traced: Trace) -> str:
    """Returns everything that the result of a trial depends on, as text."""
    module, start = model.get_submodule(name), len(name) + 1 if name else 0
    tensors = [(key, tuple(tensor.shape)) for key, tensor in chain(module.named_parameters(), module.named_buffers())]
    slices = [[(part.tensor[start:], part.dim, part.index_UK.tolist()) for part in group.slices] for group in groups]
    inputs = tree_map(
        lambda value: (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else type(value), traced.entered[name].args
    )
    return repr((type(module), tensors, slices, inputs, repr(module)))


def _tried(model: nn.Module, name: str, groups: list[Group], entered: Mapping[str, Entered]) -> list[Group | str | None]:
    """Returns for each group the variant that passed (names relative to the module), the reason why none did, or None if it was joined."""
    trial = _Trial(model, name, entered[name])
    relative = [_renamed(group, "", len(name) + 1 if name else 0) for group in groups]
    variants = [list(_variants(trial.module, group)) for group in relative]
    firsts = [candidates[0] for candidates in variants]
    if trial.fails(firsts) is None:
        results: list[Group | str | None] = list(firsts)
    else:
        results = _joined(trial, relative, [_first_that_passes(trial, candidates) for candidates in variants])
        together = [group for group in results if isinstance(group, Group)]
        if together and (reason := trial.fails(together)) is not None:
            results = [f"not together with others of its module: {reason}" if isinstance(group, Group) else group for group in results]
    free = [group for group in results if isinstance(group, Group) and group.kind in (Kind.HEAD, Kind.NEURON)]
    if free and trial.fails(free, empty=True) is not None:
        free = [group for group in free if trial.fails([group], empty=True) is None]
    names = {group.name for group in free}
    return [replace(group, least=0 if group.name in names else 1) if isinstance(group, Group) else group for group in results]


def _joined(trial: _Trial, groups: Sequence[Group], results: list[Group | str]) -> list[Group | str | None]:
    """Joins groups that pass only together, since one number of their module counts the units of both, to the first of them."""
    joined: list[Group | str | None] = list(results)
    failed = [index for index, result in enumerate(results) if isinstance(result, str)]
    for units in dict.fromkeys(groups[index].units for index in failed):
        together = [index for index in failed if groups[index].units == units]
        for chosen in (together, *combinations(together, 2)) if 1 < len(together) <= MOST_JOINED else ():
            if any(not isinstance(joined[index], str) for index in chosen):
                continue
            result = _first_that_passes(trial, list(_variants(trial.module, join([groups[index] for index in chosen]))))
            if isinstance(result, Group):
                first, *others = chosen
                joined[first] = result
                for index in others:
                    joined[index] = None
    return joined


def _first_that_passes(trial: _Trial, variants: Sequence[Group]) -> Group | str:
    """Returns the first variant that passes, or the reason why none does."""
    reasons = []
    for variant in variants:
        reason = trial.fails([variant])
        if reason is None:
            return variant
        reasons.append(reason)
    return next((reason for reason in reasons if DIFFERS in reason), reasons[0])


def _renamed(group: Group, prefix: str, start: int) -> Group:
    """Returns the group with names of tensors and modules cut off before ``start`` and prefixed with ``prefix``."""

    def parts(slices: Iterable[Slice]) -> tuple[Slice, ...]:
        return tuple(replace(part, tensor=prefix + part.tensor[start:]) for part in slices)

    sizes = tuple(Size(prefix + size.name[start:], size.of_unit) for size in group.sizes)
    narrow = tuple((prefix + name[start:]).rstrip(".") for name in group.narrow)
    produced, consumed, running = (parts(slices) for slices in (group.produced, group.consumed, group.running))
    return replace(group, produced=produced, consumed=consumed, running=running, sizes=sizes, narrow=narrow)


def _variants(module: nn.Module, group: Group) -> Iterator[Group]:
    """Yields the group with the numbers of its modules that may depend on its units, the most likely choice first."""
    around, inner = _around(module, group)
    numbers = [(f"{name}.{key}" if name else key, key, value) for name, owner in around for key, value in _whole_numbers(owner)]
    counts = [Size(name, 1) for name, key, value in numbers if value == group.units and ("head" in key or "group" in key)]
    places = [Size(name, 1) for name, key, value in numbers if value == group.units and "[" in key]
    parts = _parts(module, around, group)
    positions_of_width = {group.units * part.index_UK.shape[1]: part.index_UK.shape[1] for part in group.slices}
    counted = {size.name for size in counts}
    widths = [Size(name, positions_of_width[value]) for name, _, value in numbers if value in positions_of_width and name not in counted]
    options: list[tuple[list[Size], tuple[str, ...]]] = []
    for sizes in [counts, []] if group.kind is Kind.HEAD else [[], counts]:
        options += [(sizes, ()), ([*sizes, *widths], ()), ([*sizes, *places], ()), (parts, ())]
    options += [([*counts, *more], (inner,)) for more in ([], widths) if counts]
    yielded = []
    for sizes, narrow in options:
        if (sizes, narrow) not in yielded:
            yielded.append((sizes, narrow))
            yield replace(group, sizes=(*group.sizes, *sizes), narrow=narrow)


def _around(module: nn.Module, group: Group) -> tuple[list[tuple[str, nn.Module]], str]:
    """Returns the modules above the group's tensors, and the name of the innermost that holds all of them."""
    names = {""}
    for part in group.slices:
        path = part.tensor.split(".")[:-1]
        names |= {".".join(path[:length]) for length in range(1, len(path) + 1)}
    around = [(name, owner) for name in sorted(names) if not isinstance(owner := module.get_submodule(name), SELF_SIZED)]
    inner = home(group)
    while isinstance(module.get_submodule(inner), SELF_SIZED):
        inner = inner.rpartition(".")[0]
    return around, inner


def _whole_numbers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Yields the whole numbers that a module keeps, by the name of the attribute, with an index for a list."""
    for key, value in vars(module).items():
        if not key.startswith("_") and type(value) is int:
            yield key, value
        elif not key.startswith("_") and isinstance(value, list | tuple) and all(type(part) is int for part in value):
            yield from ((f"{key}[{index}]", part) for index, part in enumerate(value))


def _parts(module: nn.Module, around: Sequence[tuple[str, nn.Module]], group: Group) -> list[Size]:
    """Returns the sizes of the parts that an output of the group's first layer is split into, if a module keeps them as a list."""
    part = group.produced[0]
    total = module.get_parameter(part.tensor).shape[part.dim]
    for name, owner in around:
        for key, value in vars(owner).items():
            if isinstance(value, list | tuple) and len(value) > 1 and all(type(size) is int for size in value) and sum(value) == total:
                ends = torch.tensor(value).cumsum(0)
                part_UK = torch.bucketize(part.index_UK, ends, right=True)
                counts_UP = torch.stack([(part_UK == index).sum(1) for index in range(len(value))], dim=1)
                if bool((counts_UP == counts_UP[0]).all()):
                    prefix = f"{name}.{key}" if name else key
                    return [Size(f"{prefix}[{index}]", int(count)) for index, count in enumerate(counts_UP[0]) if count]
    return []


class _Trial:
    """A module with random parameters, and random inputs of the shapes of its first call."""

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
                    normal = self._normal(parameter.shape)
                    fan_in = max(1, parameter[0].numel()) if parameter.ndim > 1 else 1
                    values = normal / fan_in**0.5 if parameter.ndim > 1 else 0.2 * normal + (0.0 if key == "bias" else 1.0)
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
        """Returns why the module without half of the units of ``groups`` (or all) differs from the one with them silenced, or None."""
        kept = {group.name: self._half(group.units, empty) for group in groups}
        try:
            with torch.no_grad():
                outputs = self._outputs(self._smaller(groups, kept))  # first, since most failures are errors of this one
                expected = self._outputs(self._silenced(groups, kept))
        except Exception as error:  # a module may raise anything
            return f"without units: {' '.join(str(error).split())[:120] or type(error).__name__}"
        if [part.shape for part in expected] != [part.shape for part in outputs]:
            return "the output has another shape"
        if not all(bool(part.isfinite().all()) for part in (*expected, *outputs)):
            return "the output is not finite"
        largest = max((float(part.abs().max()) for part in expected if part.numel()), default=0.0)
        difference = max(
            (float((part - other).abs().max()) for part, other in zip(expected, outputs, strict=True) if part.numel()), default=0.0
        )
        if difference <= self.tolerance * largest:
            return None
        return f"{DIFFERS} by {difference / largest:.1e}" if largest else "the output is zero"

    def _half(self, units: int, empty: bool) -> Tensor:
        if empty:
            return torch.zeros(units, dtype=torch.bool)
        order = torch.randperm(units, generator=self.generator)
        return torch.zeros(units, dtype=torch.bool).index_fill_(0, order[: max(1, units // 2)], True)

    def _silenced(self, groups: Sequence[Group], kept: Mapping[str, Tensor]) -> nn.Module:
        silenced = copy.deepcopy(self.module)  # the original never runs, since some modules cache what they compute
        mask_(dict(silenced.named_parameters()), groups, kept)
        return silenced

    def _smaller(self, groups: Sequence[Group], kept: Mapping[str, Tensor]) -> nn.Module:
        state, smaller = take(self.state, groups, kept), copy.deepcopy(self.module)
        shapes = {key: list(tensor.shape) for key, tensor in state.items() if tensor.shape != self.state[key].shape}
        rest = remainder(smaller, groups, kept)
        resize_(smaller, shapes | rest.shapes, rest.sizes, rest.narrow)
        smaller.load_state_dict(state)
        return smaller

    def _outputs(self, module: nn.Module) -> list[Tensor]:
        args, kwargs = copy.deepcopy((self.args, self.kwargs))  # some modules change their inputs in place
        output = module(*args, **kwargs)
        return [part.to(self.dtype) for part in tree_flatten(output)[0] if isinstance(part, Tensor) and part.dtype is not torch.bool]
