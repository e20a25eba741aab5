"""A GPU that is not there: tensors that say they are on ``cuda:0`` and refuse what CUDA refuses, computed on the CPU.

They cannot be mixed with CPU tensors (except scalars and indices, as on CUDA), have no ``numpy()``, and no address that kernels for the CPU
could read. So every forgotten ``.to(device)`` and ``.cpu()`` is an error here, as it would be on a GPU. Rates, memory and rounding are the
CPU's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

GPU = torch.device("cuda", 0)
aten = torch.ops.aten
CROSSING = {aten.copy_.default, aten._to_copy.default}  # between devices
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._unsafe_index.Tensor}  # by indices on the CPU, too
MOVES = {Tensor.to, Tensor.cuda, Tensor.cpu}
REFUSED = {Tensor.numpy, Tensor.__array__, Tensor.data_ptr, Tensor.untyped_storage}


class OnGPU(Tensor):
    """A tensor on the simulated GPU. ``inner`` has its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnGPU:
        made = Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype, layout=inner.layout
        )
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return GPU

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnGPU({self.inner})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copied = OnGPU(self.inner.clone())
            memo[id(self)] = nn.Parameter(copied, self.requires_grad) if isinstance(self, nn.Parameter) else copied
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:  # to a file, as checkpoints do
        return OnGPU, (self.inner,)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        mixed = [tensor for tensor in tensors if not isinstance(tensor, OnGPU) and tensor.ndim]
        if mixed and func not in CROSSING and not (func in INDEXING and isinstance(args[0], OnGPU)):
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found cuda:0 and cpu {tuple(mixed[0].shape)}")
        if kwargs.get("device") is not None:  # asked for by code in C++, which takes these tensors for CPU tensors
            kwargs["device"] = torch.device("cpu")
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        outputs = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        if _writes_first(func):
            return args[0]
        return tree_map(_wrapped, outputs)


def _writes_first(func: Any) -> bool:
    """Whether an operation returns its first argument, which it has changed."""
    returned = func._schema.returns
    return bool(returned) and returned[0].alias_info is not None and returned[0].alias_info.is_write


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, OnGPU) else value


def _wrapped(value: Any) -> Any:
    return OnGPU(value) if isinstance(value, Tensor) and not isinstance(value, OnGPU) else value


class _Placing(TorchFunctionMode):
    """Takes what asks for the GPU there, and refuses what CUDA tensors refuse."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in REFUSED and isinstance(args[0], OnGPU):
            raise TypeError(f"{func.__name__}: can't convert cuda:0 device type tensor; use Tensor.cpu() first")
        if func in MOVES:
            return _moved(func, args, kwargs)
        if func is Tensor.tolist:
            return func(_inner(args[0]))
        if func is functional.one_hot:  # creates a tensor in C++
            return _wrapped(func(_inner(args[0]), *args[1:], **kwargs)) if isinstance(args[0], OnGPU) else func(*args, **kwargs)
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda" and func is not torch.Generator:
            kwargs["device"] = torch.device("cpu")
            return _wrapped(func(*args, **kwargs))
        return func(*args, **kwargs)


def _moved(func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Tensor:
    tensor, dtype = args[0], None
    if func is Tensor.to:
        if len(args) > 1 and isinstance(args[1], Tensor):
            device, dtype = args[1].device, args[1].dtype
        else:
            device, dtype, _, _ = torch._C._nn._parse_to(*args[1:], **{key: value for key, value in kwargs.items() if key != "copy"})
    else:
        device = GPU if func is Tensor.cuda else torch.device("cpu")
    here = tensor if dtype is None else func(tensor, dtype) if func is Tensor.to else tensor
    if device is None or device.type == here.device.type:
        return here
    if device.type == "cuda":
        return _ToGPU.apply(here)
    return _ToCPU.apply(here) if device.type == "cpu" else func(*args, **kwargs)


def _move_module(to: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """``Module.to``, which makes new parameters here, keeps those that are there already, as it does on CUDA."""

    def move(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        there = all(tensor.device.type == device.type for tensor in (*module.parameters(), *module.buffers())) if device else False
        return module if there and dtype is None else to(module, *args, **kwargs)

    return move


class _ToGPU(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        return OnGPU(tensor.detach().clone())

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient.inner if isinstance(gradient, OnGPU) else gradient


class _ToCPU(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        assert isinstance(tensor, OnGPU)
        return tensor.inner.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient if isinstance(gradient, OnGPU) else OnGPU(gradient)


@contextmanager
def simulated_gpu() -> Iterator[None]:
    """A context in which torch has one GPU with 80 GB. Triton kernels are replaced by the reference that they are tested against."""
    from kernels.obs import gpu, reference

    properties = mock.Mock(total_memory=80_000_000_000, major=8, minor=0)
    event = mock.Mock(elapsed_time=mock.Mock(return_value=1.0))
    names = ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check")  # of torch from 2.11 on, and before
    health_check = next(name for name in names if hasattr(torch.optim.Optimizer, name))
    patches = [
        mock.patch.object(gpu, "eliminate", reference.eliminate),
        mock.patch.object(torch.optim.Optimizer, health_check, lambda optimizer: None),  # asks the driver
        mock.patch.object(torch._C, "_InferenceMode", lambda mode: torch.no_grad()),  # which views of such tensors do not support
        mock.patch.object(nn.Module, "to", _move_module(nn.Module.to)),
        *(
            mock.patch.object(torch.cuda, name, value)
            for name, value in {
                "is_available": lambda: True,
                "device_count": lambda: 1,
                "current_device": lambda: 0,
                "set_device": lambda device: None,
                "get_device_name": lambda device=None: "simulated",
                "get_device_properties": lambda device=None: properties,
                "get_device_capability": lambda device=None: (8, 0),
                "synchronize": lambda device=None: None,
                "reset_peak_memory_stats": lambda device=None: None,
                "max_memory_allocated": lambda device=None: 1_000_000,
                "Event": lambda enable_timing=False: event,
            }.items()
        ),
    ]
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # a tensor cannot become one of another class in place
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, before)
        stack.enter_context(_Placing())
        yield
