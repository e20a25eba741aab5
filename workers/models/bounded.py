"""Limits while a library builds an architecture, whose name and arguments may come from the model file of a stranger.

``depth: 100000000`` is as valid as ``depth: 12``. The limits are the same on every machine. Of the models of timm, one needs 20 million
calls (tiny_vit_21m_512), another one 130,000 operations (maxvit_xlarge_tf_512), and most need a hundredth of that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from workers.errors import ConfigError

MOST_CALLS = 100_000_000  # of functions
MOST_OPERATIONS = 1_000_000  # on tensors
MOST_ENTRIES = 2**29  # of one tensor

Built = TypeVar("Built")
_weights_follow: ContextVar[bool] = ContextVar("whether initial weights are not needed", default=False)


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


def bounded(create: Callable[[], Built]) -> Built:
    """Returns what ``create`` returns. Raises: ConfigError if it calls too many functions or makes too large a tensor."""
    try:
        with _Operations(), _Uninitialised() if _weights_follow.get() else nullcontext(), _few_calls():
            return create()
    except _LimitReached as reached:
        raise ConfigError(f"model.arguments: expected an architecture of a possible size, got {reached}") from None


@contextmanager
def _few_calls() -> Iterator[None]:
    """Limits the number of calls in this thread. A profiler that is at work sees none of them."""
    calls = 0

    def count(frame: Any, event: str, _: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")
        if calls > MOST_CALLS:
            raise _LimitReached(f"one that takes more than {MOST_CALLS:,} calls of functions to build")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(before)


class _Operations(TorchDispatchMode):
    """A mode that limits operations and the entries of their results, also on the meta device, where these take no memory."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        if self.operations > MOST_OPERATIONS:
            raise _LimitReached(f"one that takes more than {MOST_OPERATIONS:,} operations on tensors to build")
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.numel() > MOST_ENTRIES:
                raise _LimitReached(f"a tensor of shape {tuple(tensor.shape)}, with more than {MOST_ENTRIES:,} entries")
        return result


class _Uninitialised(TorchFunctionMode):
    """A mode that leaves out functions that change a parameter in place."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        changed = args[0] if args else (kwargs or {}).get("tensor")  # by a method, or by a function of torch.nn.init
        name = getattr(function, "__name__", "")
        if isinstance(changed, nn.Parameter) and name.endswith("_") and not name.startswith("_") and name != "requires_grad_":
            return changed
        return function(*args, **(kwargs or {}))
