"""DeepSpeed, and what keeps masked weights at zero in it. No other module imports DeepSpeed.

Gradients of masked weights are zeroed before DeepSpeed reads them. Their moments are then zero, so their updates are zero, and decoupled
weight decay of zero is zero: in every ZeRO stage and in every copy of the weights.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from workers.errors import SecateurError
from workers.training.settings import Optimizer, Training


class ZeroHold:
    """Zeroes the gradients of masked weights, and records gradients that are not finite, before anything else reads them."""

    def __init__(self, model: nn.Module, masks: dict[str, Tensor], device: torch.device) -> None:
        self.model, self.masks = model, {layer: keep.to(device) for layer, keep in masks.items()}
        self.broken = torch.zeros((), dtype=torch.bool, device=device)
        masked = {f"{layer}.weight": ~keep for layer, keep in self.masks.items()}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.register_hook(self._hook(masked.get(name)))

    def _hook(self, masked: Tensor | None) -> Callable[[Tensor], Tensor]:
        def clean(gradient: Tensor) -> Tensor:
            broken = ~torch.isfinite(gradient).all()
            self.broken |= broken
            return gradient.masked_fill(broken if masked is None else masked | broken, 0.0)

        return clean

    def check(self, zero_stage: int) -> None:
        """Raises: SecateurError if a masked weight is not exactly zero."""
        for layer, keep in self.masks.items():
            weight = self.model.get_parameter(f"{layer}.weight")
            with gathered([weight], zero_stage):
                nonzero = int(torch.count_nonzero(weight.detach()[~keep]))
            if nonzero:
                raise SecateurError(
                    f"{layer}: expected masked weights to remain zero during training, got {nonzero} that changed; the result is not "
                    "used, please report this error"
                )


class Steps:
    """Runs the optimizer's steps, or skips them while ``skip`` is set: weights, moments and step counts then do not change."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.skip = False
        self._step = optimizer.step
        optimizer.step = self._run  # type: ignore[method-assign, assignment]

    def _run(self, *arguments: Any) -> None:
        if not self.skip:
            self._step(*arguments)


def start_engine(student: nn.Module, settings: Training, device: torch.device) -> tuple[Any, Steps]:
    """Returns a DeepSpeed engine around a model, and the switch that skips steps of its optimizer. Compiles nothing."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    import deepspeed

    # DeepSpeed runs compilers to find out which of its kernels can be compiled. On a CPU it would then compile its shared-memory
    # collectives, which fails without a compiler. None of them is needed: the optimizer is torch's, the collectives are gloo's or NCCL's.
    deepspeed.ops.__compatible_ops__ = defaultdict(bool)
    deepspeed.utils.logger.setLevel(logging.ERROR)
    config = {
        "train_micro_batch_size_per_gpu": settings.batch_size // settings.ranks,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.clip_norm,
        "zero_optimization": {"stage": settings.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    optimizer = torch_optimizer(student, settings)
    steps = Steps(optimizer)
    with contextlib.redirect_stdout(None):
        return deepspeed.initialize(model=student, optimizer=optimizer, config=config, dist_init_required=False)[0], steps


def torch_optimizer(student: nn.Module, settings: Training) -> torch.optim.Optimizer:
    """Returns the optimizer of the settings. It does not decay vectors: biases, norms, layer scales."""
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer is Optimizer.ADAMW:
        return torch.optim.AdamW(groups, lr=settings.lr)
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)


def full_state(model: nn.Module, zero_stage: int) -> dict[str, Tensor]:
    """Returns the whole weights and buffers on the CPU. All ranks have to call it."""
    with gathered(list(model.parameters()), zero_stage):
        return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


@contextlib.contextmanager
def gathered(parameters: list[nn.Parameter], zero_stage: int) -> Iterator[None]:
    """A context in which the parameters are whole. ZeRO-3 otherwise keeps only a part of each on a rank."""
    if zero_stage < 3:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters):
        yield


def end_process_group() -> None:
    """Ends torch's process group and DeepSpeed's reference to it, which a second training in this process would use otherwise.

    Also restores torch's ``linear``, which ZeRO-3 replaces by a function that can be neither differentiated twice nor mapped.
    """
    import deepspeed
    from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses

    torch.nn.functional.linear = getattr(InsertPostInitMethodToModuleSubClasses, "linear_bk", torch.nn.functional.linear)
    if deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()
    else:
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A context without log messages of DeepSpeed and without torch's warnings about it."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for module in ("deepspeed", r"torch\.distributed", r"torch\.nn\.modules\.module"):
            warnings.filterwarnings("ignore", module=module)
        yield
