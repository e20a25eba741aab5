"""Structures of convolutional networks, from the dependency graph of torch-pruning (its one door)."""

from __future__ import annotations

import ctypes
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from workers.errors import ConfigError
from workers.structure import Group, Kind, Slice

TRACE_SECONDS = 120.0  # torch-pruning can search for ever
Found = TypeVar("Found")


def traced_groups(model: nn.Module, image_1CHW: Tensor, heads: set[str]) -> list[Group]:
    """In the order of definition. ``heads`` are the layers whose outputs leave the model.

    Left out are groups that a norm takes a mean over (LayerNorm, GroupNorm: without a unit it is another function), that no layer reads,
    those of grouped convolutions that are not depthwise, those whose units do not correspond one to one, and those of more units than a
    tensor has (halves that are multiplied).
    Raises: ConfigError naming the module at which the graph could not be found in time, or at all.
    """
    import torch_pruning as tp

    at = [""]
    hooks = [module.register_forward_pre_hook(_noting(at, name)) for name, module in model.named_modules() if name]
    outputs = [model.get_submodule(name) for name in heads]

    def trace() -> list:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = tp.DependencyGraph().build_dependency(model, image_1CHW, verbose=False)
            return list(graph.get_all_groups(ignored_layers=outputs, root_module_types=[nn.Conv2d, nn.Linear]))

    try:
        traced = within(TRACE_SECONDS, trace)
    except TimeoutError as error:
        raise ConfigError(_failure(model, at, f"was not found in {TRACE_SECONDS:.0f} s")) from error
    except Exception as error:  # whatever the tracing of a foreign model raises
        raise ConfigError(_failure(model, at, f"cannot be found: {' '.join(str(error).split())[:160]}")) from error
    finally:
        for hook in hooks:
            hook.remove()
    names = {module: name for name, module in model.named_modules()}
    parameters = {id(parameter): name for name, parameter in model.named_parameters()}
    order = {name: index for index, name in enumerate(names.values())}
    groups = [group for entry in traced if (group := _group(entry, names, parameters, set(outputs), order)) is not None]
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    return sorted((group for group in groups if _fits(group, shapes)), key=lambda group: order[group.name])


def _noting(at: list[str], name: str) -> Callable[..., None]:
    def note(*_: object) -> None:
        at[0] = name

    return note


def _failure(model: nn.Module, at: list[str], reason: str) -> str:
    return (
        f"model.name: the structure of {type(model).__name__} {reason} (last module: {at[0] or 'none'}); "
        "prune it with a pruner of single weights, such as pruner=cap"
    )


def within(seconds: float, work: Callable[[], Found]) -> Found:
    """The result of ``work``, or TimeoutError; what runs too long is ended where it is."""
    done: list[Found] = []
    failed: list[BaseException] = []

    def carry_out() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=carry_out, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
        raise TimeoutError(f"not done in {seconds:.0f} s")
    if failed:
        raise failed[0]
    return done[0]


def _group(
    entry: object, names: dict[nn.Module, str], parameters: dict[int, str], outputs: set[nn.Module], order: dict[str, int]
) -> Group | None:
    """A group of torch-pruning in our terms, called after the first layer in ``order`` that produces it; None if it is to be left out."""
    produced: dict[tuple[str, int], Slice] = {}
    consumed: dict[tuple[str, int], Slice] = {}
    running: dict[tuple[str, int], Slice] = {}
    roots: dict[str, bool] = {}  # whether linear
    added = False
    for item in entry:  # type: ignore[attr-defined]
        module, reads = item.dep.target.module, item.dep.handler.__name__.endswith("in_channels")
        index_UK = _by_unit(item.idxs, item.root_idxs)
        if index_UK is None:
            return None
        if isinstance(module, nn.Parameter):
            name = parameters[id(module)]
            produced[name, -1] = Slice(name, module.ndim - 1, index_UK)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            name, depthwise = names[module], isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels
            if isinstance(module, nn.Conv2d) and module.groups > 1 and not (depthwise and module.out_channels == module.groups):
                return None
            if reads and not depthwise:
                consumed[name, 1] = Slice(f"{name}.weight", 1, index_UK)
                continue
            if module in outputs:
                return None
            roots[name] = isinstance(module, nn.Linear)
            produced[name, 0] = Slice(f"{name}.weight", 0, index_UK)
            if module.bias is not None:
                produced[f"{name}.bias", 0] = Slice(f"{name}.bias", 0, index_UK)
        elif isinstance(module, nn.BatchNorm2d):
            name = names[module]
            for leaf in ("weight", "bias"):
                if getattr(module, leaf) is not None:
                    produced[f"{name}.{leaf}", 0] = Slice(f"{name}.{leaf}", 0, index_UK)
            for leaf in ("running_mean", "running_var"):
                running[f"{name}.{leaf}", 0] = Slice(f"{name}.{leaf}", 0, index_UK)
        elif module in names:  # a norm over units, or something not known
            return None
        else:
            added |= "AddBackward" in item.dep.target.name
    if not consumed or not roots:
        return None
    root = min(roots, key=lambda name: order[name])
    kind = Kind.STREAM if added else Kind.NEURON if roots[root] else Kind.CHANNEL
    return Group(root, kind, tuple(produced.values()), tuple(consumed.values()), tuple(running.values()))


def _fits(group: Group, shapes: Mapping[str, torch.Size]) -> bool:
    return all(int(part.index_UK.max()) < shapes[part.tensor][part.dim] for part in group.slices)


def _by_unit(indices: list[int], roots: list[int]) -> Tensor | None:
    """Positions by unit, (U, K): torch-pruning lists them beside the channel of the root that each belongs to. None if units differ."""
    index, root = torch.tensor(indices), torch.tensor(roots)
    counts = root.bincount()
    if not bool((counts == counts[0]).all()):
        return None
    return index[torch.argsort(root, stable=True)].view(len(counts), -1)
