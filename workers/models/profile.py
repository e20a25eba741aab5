"""The cost of a model, counted on the meta device, without weights, data or accelerator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workers.models.base import Layer, ModelFamily

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workers.errors import ConfigError

WEIGHTED = ("addmm", "mm", "convolution", "_convolution")  # products with a weight; all other products are between activations


@dataclass(frozen=True)
class Depth:
    """The position of a layer in the forward pass of one sample, and the cost of a backward pass down to it."""

    flops: int  # of its own product; the gradients of its weight and of its input take as many each
    weighted_before: int  # flops of all products with weights before it
    mixed_before: int  # flops of products between activations (attention) before it
    kept_bytes: int  # activations that a backward pass down to it needs, from it to the loss
    input_bytes: int  # additional memory for the gradient of its weight: its input, if nothing else keeps that


@dataclass(frozen=True)
class ModelProfile:
    """The sizes of a model for inputs of one shape. Flops and activations are for one sample (float32); a multiply-add is 2 flops.

    ``layers`` are in the order of the forward pass, ``depths`` in the same order.
    """

    layers: tuple[Layer, ...]
    depths: tuple[Depth, ...]
    parameters: int
    outputs: int  # numbers for one sample: classes, or features
    weighted_flops: int  # of a forward pass, for products with weights
    mixed_flops: int  # ... and for products between activations
    activation_bytes: int  # activations that are kept when every weight is trained
    recomputed_bytes: int | None  # ... if those of blocks are computed again; None for models without such blocks
    largest_bytes: int  # the largest output of a module, as an estimate for temporary memory

    @property
    def forward_flops(self) -> int:
        return self.weighted_flops + self.mixed_flops

    @property
    def model_bytes(self) -> int:
        return 4 * self.parameters

    @property
    def prunable_weights(self) -> int:
        return sum(layer.weights for layer in self.layers)


def profile(family: ModelFamily, input_shape: tuple[int, int, int]) -> ModelProfile:
    """Returns the profile of a model that is built on the meta device and run three times on a sample of ``(channels, height, width)``.

    Raises: ConfigError if a pattern matches no layer, or if the model does not accept such images.
    """
    import torch

    with torch.device("meta"):
        model = family.build().eval()
        image_1CHW = torch.empty(1, *input_shape)
    layers = family.layers(model)
    try:
        flops = _Flops(model, layers, image_1CHW)
        kept = _Kept(model, layers, image_1CHW)
    except Exception as error:
        raise _reason(model, image_1CHW, error) from error
    order = sorted(range(len(layers)), key=lambda index: (flops.before(layers[index].name), index))
    return ModelProfile(
        layers=tuple(layers[index] for index in order),
        depths=tuple(
            Depth(
                flops.by_layer[layers[index].name],
                *flops.before(layers[index].name),
                kept.after(layers[index].name),
                kept.inputs(layers[index].name),
            )
            for index in order
        ),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        outputs=flops.output.shape[-1],
        weighted_flops=flops.total[0],
        mixed_flops=flops.total[1],
        activation_bytes=kept.everything,
        recomputed_bytes=kept.recomputed,
        largest_bytes=kept.largest,
    )


def _reason(model: nn.Module, image_1CHW: Tensor, error: Exception) -> ConfigError:
    """Returns why a traced forward pass failed. A second pass without tracing shows whether the size of the image is the cause."""
    import torch

    from workers.errors import ConfigError

    shape, made_for = "x".join(map(str, image_1CHW.shape[1:])), (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    size = "x".join(map(str, made_for or ()))
    hint = f"; the released weights of this architecture are for {size}" if made_for and size != shape else ""
    try:
        with torch.no_grad():
            model(image_1CHW)
    except Exception as misfit:
        if isinstance(misfit, NotImplementedError) or "meta tensor" in str(misfit):
            why = "since its forward pass depends on values of tensors"
            return ConfigError(f"model: the cost of the model cannot be counted without weights, {why}: {_line(misfit)}")
        return ConfigError(f"data: images of {shape} (channels x height x width) do not fit the model: {_line(misfit)}{hint}")
    return ConfigError(
        f"model: the cost of the model cannot be counted, although it accepts images of {shape}: {_line(error)}; please report this"
    )


def _line(error: Exception) -> str:
    """Returns the first line of an exception, with the name of its class unless that is a generic one."""
    first = next(iter(str(error).splitlines()), "").rstrip(".")
    return first if isinstance(error, RuntimeError | AssertionError) and first else f"{type(error).__name__} {first}".rstrip()


class _Flops:
    """The flops of a forward pass up to each layer, with weights and without, counted by torch's own counter."""

    def __init__(self, model: nn.Module, layers: list[Layer], image_1CHW: Tensor) -> None:
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        from workers.collect.products import Products

        self.by_layer = {layer.name: 0 for layer in layers}
        self._before: dict[str, tuple[int, int]] = {}
        counter = FlopCounterMode(display=False)

        def now() -> tuple[int, int]:
            counts = {str(op).split(".")[1]: count for op, count in counter.flop_counts["Global"].items()}
            weighted = sum(count for op, count in counts.items() if op in WEIGHTED)
            return weighted, sum(counts.values()) - weighted

        def enter(name: str, _: object) -> None:
            self._started = now()
            self._before.setdefault(name, self._started)

        def leave(name: str, _: object) -> None:
            self.by_layer[name] += now()[0] - self._started[0]

        model.requires_grad_(False)  # torch's counter fails on expanded parameters (class tokens) that require gradients
        with torch.no_grad(), counter, Products(model, layers, enter, leave):
            self.output = model(image_1CHW)
        self.total = now()

    def before(self, name: str) -> tuple[int, int]:
        """Returns the flops before a layer. A layer that the forward pass does not reach is placed at its end."""
        return self._before.get(name, self.total)


class _Kept:
    """The bytes that autograd keeps for gradients of activations, for the gradient of one layer's weight, and for those of all weights."""

    def __init__(self, model: nn.Module, layers: list[Layer], image_1CHW: Tensor) -> None:
        from workers.collect.products import Products

        self.largest = 0
        self._clock = 0
        self._entered: dict[str, int] = {}
        self._input: dict[str, Any] = {}

        def enter(name: str, arguments: dict[str, Any]) -> None:
            self._clock += 1
            self._entered.setdefault(name, self._clock)
            self._input.setdefault(name, arguments["input"].untyped_storage())

        def record(_: object, __: object, output: object) -> None:
            self.largest = max(self.largest, getattr(output, "nbytes", 0))

        hooks = [module.register_forward_hook(record) for module in model.modules() if not any(True for _ in module.children())]
        with _removing(hooks), Products(model, layers, enter):
            self._saved = self._forward(model.requires_grad_(False), image_1CHW.clone().requires_grad_(True))
        self.everything, self.recomputed = self._all_weights(model.requires_grad_(True), image_1CHW)

    def _all_weights(self, model: nn.Module, image_1CHW: Tensor) -> tuple[int, int | None]:
        """Returns the bytes that are kept for all weights, and those that are left of them if blocks keep their inputs alone: these inputs,
        what is kept outside of blocks, and all of the block that keeps most."""
        from workers.models.blocks import find_blocks

        spans: list[tuple[int, int]] = []
        inputs = 0

        def enter(_: object, arguments: tuple[Any, ...]) -> None:
            nonlocal inputs
            inputs += sum(getattr(each, "nbytes", 0) for each in arguments)
            self._clock += 1
            spans.append((self._clock, 0))

        def leave(_: object, __: object, ___: object) -> None:
            spans[-1] = (spans[-1][0], self._clock)
            self._clock += 1

        blocks = find_blocks(model)
        hooks = [block.register_forward_pre_hook(enter) for block in blocks] + [block.register_forward_hook(leave) for block in blocks]
        with _removing(hooks):
            saved = self._forward(model, image_1CHW).values()
        everything = sum(storage.nbytes() for storage, _ in saved)
        by_block = [sum(storage.nbytes() for storage, when in saved if first <= when <= last) for first, last in spans]
        return everything, everything - sum(by_block) + inputs + max(by_block) if by_block else None

    def _forward(self, model: nn.Module, image_1CHW: Tensor) -> dict[int, tuple[Any, int]]:
        """Returns the storages that are kept beside the weights, with the time of each. References to them keep their keys unique."""
        from torch.autograd.graph import saved_tensors_hooks

        constant = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
        saved: dict[int, tuple[Any, int]] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in constant:
                saved.setdefault(storage._cdata, (storage, self._clock))
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor), _flash_attention():
            model(image_1CHW)
        return saved

    def after(self, name: str) -> int:
        """Returns the bytes that are kept at or after a layer; 0 for a layer that the forward pass does not reach."""
        since = self._entered.get(name, self._clock + 1)
        return sum(storage.nbytes() for storage, when in self._saved.values() if when >= since)

    def inputs(self, name: str) -> int:
        storage = self._input.get(name)
        return 0 if storage is None or storage._cdata in self._saved else storage.nbytes()


@contextmanager
def _removing(hooks: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _flash_attention() -> Iterator[None]:
    """A context in which attention is fused, as on accelerators. The meta device would keep the matrix of all pairs otherwise."""
    import torch
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode

    class Flash(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
            kwargs = kwargs or {}
            fusible = func is functional.scaled_dot_product_attention and len(args) == 3 and not kwargs.get("enable_gqa")
            fusible = fusible and args[0].ndim == 4 and args[0].shape[-1] == args[1].shape[-1] == args[2].shape[-1]
            if fusible and kwargs.get("attn_mask") is None and not kwargs.get("dropout_p"):
                causal = kwargs.get("is_causal", False)
                return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args, 0.0, causal, scale=kwargs.get("scale"))[0]
            return func(*args, **kwargs)

    with Flash():
        yield
