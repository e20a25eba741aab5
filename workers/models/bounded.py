"""Limits while a library builds an architecture, whose name and arguments may come from the model file of a stranger.

``depth: 100000000`` is as valid as ``depth: 12``. The limits are the same on every machine. Of the models of timm, one needs 20 million
calls (tiny_vit_21m_512), another one 130,000 operations (maxvit_xlarge_tf_512), and most need a hundredth of that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from cProfile import Profile
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from workers.errors import ConfigError

MOST_CALLS = 100_000_000  # of functions
MOST_OPERATIONS = 1_000_000  # on tensors
MOST_PARAMETERS = 20_000  # tensors, of which the largest models of timm have 3,000
MOST_ENTRIES = 2**29  # of one tensor

Built = TypeVar("Built")
_weights_follow: ContextVar[bool] = ContextVar("whether initial weights are not needed", default=False)
_kept: set[tuple[str, int, int, int, int]] = set()  # what was created, and the limits that it kept


class _LimitReached(BaseException):
    """Is no ``Exception``, after which a library might go on."""


@contextmanager
def weights_follow() -> Iterator[None]:
    """A context in which ``bounded`` leaves out the initial values of parameters, which take no room until they get other values."""
    token = _weights_follow.set(True)
    try:
        yield
    finally:
        _weights_follow.reset(token)


def bounded(create: Callable[[], Built], key: str = "") -> Built:
    """Returns what ``create`` returns. Raises: ConfigError if it calls too many functions or makes too large a tensor.

    ``key`` says what is created. What was within the limits once is not watched again, since watching takes time.
    """
    limits = key, MOST_CALLS, MOST_OPERATIONS, MOST_PARAMETERS, MOST_ENTRIES
    try:
        with ExitStack() as contexts:
            if _weights_follow.get():
                contexts.enter_context(_Uninitialised())
            if not key or limits not in _kept:
                contexts.enter_context(_Operations())
                contexts.enter_context(_few_calls())
            created = create()
    except _LimitReached as reached:
        raise ConfigError(f"model.arguments: expected an architecture of a possible size, got {reached}") from None
    _kept.add(limits)
    return created


@contextmanager
def _few_calls() -> Iterator[None]:
    """Limits the calls of functions, and of parameters that modules get, in this thread. A profiler that is at work sees none of them.

    Of profilers written in C, Python can start cProfile again, but not torch's, which goes on without the stacks of Python.
    """
    register, calls, parameters = nn.Module.register_parameter.__code__, 0, 0

    def count(frame: FrameType, event: str, _: Any) -> None:
        nonlocal calls, parameters
        calls += event in ("call", "c_call")
        parameters += event == "call" and frame.f_code is register
        if calls > MOST_CALLS:
            raise _LimitReached(f"one that takes more than {MOST_CALLS:,} calls of functions to build")
        if parameters > MOST_PARAMETERS:
            raise _LimitReached(f"one with more than {MOST_PARAMETERS:,} parameters")

    before = sys.getprofile()
    if isinstance(before, Profile):
        before.disable()
    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(before if callable(before) else None)
        if isinstance(before, Profile):
            before.enable()


class _Operations(TorchDispatchMode):
    """A mode that limits operations and the entries of their results, also on the meta device, where these take no memory."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returns_list = any(isinstance(given.type, torch.ListType) for given in function._schema.returns)  # as iteration over a tensor does
        self._count(max(args[0].shape, default=0) if returns_list and isinstance(args[0], Tensor) else 1)
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.numel() > MOST_ENTRIES:
                raise _LimitReached(f"a tensor of shape {tuple(tensor.shape)}, with more than {MOST_ENTRIES:,} entries")
        return result

    def _count(self, operations: int) -> None:
        self.operations += operations
        if self.operations > MOST_OPERATIONS:
            raise _LimitReached(f"one that takes more than {MOST_OPERATIONS:,} operations on tensors to build")


class _Uninitialised(TorchFunctionMode):
    """A mode that leaves out functions that change a parameter in place."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        changed = args[0] if args else (kwargs or {}).get("tensor")  # by a method, or by a function of torch.nn.init
        name = getattr(function, "__name__", "")
        if isinstance(changed, nn.Parameter) and name.endswith("_") and not name.startswith("_") and name != "requires_grad_":
            return changed
        return function(*args, **(kwargs or {}))
