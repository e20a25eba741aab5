"""What a model costs, found without weights, data or device: everything happens on the meta device."""

from __future__ import annotations

from dataclasses import dataclass

from workers.models.base import Layer, ModelFamily


@dataclass(frozen=True)
class ModelProfile:
    """Sizes of a model for inputs of one shape. ``forward_flops`` and ``activation_bytes`` are per sample, a multiply-add being 2 flops."""

    layers: tuple[Layer, ...]
    parameters: int
    outputs: int  # numbers per sample: classes, or features
    forward_flops: int
    activation_bytes: int  # outputs of all leaf modules in float32: what a backward pass needs, nearly

    @property
    def model_bytes(self) -> int:
        return 4 * self.parameters

    @property
    def prunable_weights(self) -> int:
        return sum(layer.weights for layer in self.layers)


def profile(family: ModelFamily, input_shape: tuple[int, int, int]) -> ModelProfile:
    """Build ``family`` on the meta device and push one sample of ``(channels, height, width)`` through it.

    Raises: ConfigError if a pattern matches no layer, or the model does not take such images.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from workers.errors import ConfigError

    with torch.device("meta"):
        model = family.build().eval()
    layers = tuple(family.layers(model))
    activations = 0

    def count(module: torch.nn.Module, inputs: object, output: object) -> None:
        nonlocal activations
        if isinstance(output, torch.Tensor):
            activations += 4 * output.numel()

    hooks = [module.register_forward_hook(count) for module in model.modules() if not any(True for _ in module.children())]
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as flops:
            output = model(torch.empty(1, *input_shape, device="meta"))
    except (RuntimeError, AssertionError) as error:
        shape = "x".join(map(str, input_shape))
        raise ConfigError(
            f"data: images of {shape} (channels x height x width) do not fit the model: {str(error).splitlines()[0]}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return ModelProfile(layers, sum(p.numel() for p in model.parameters()), output.shape[-1], flops.get_total_flops(), activations)
