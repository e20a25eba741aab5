"""The training loop on DeepSpeed. The only file that knows DeepSpeed.

Zeros hold because gradients of pruned weights are masked before DeepSpeed sees them: then all moments are zero, an update is zero, and
decoupled weight decay of zero is zero, in every ZeRO stage and in every copy of the weights.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from workers.calibrate import derived_seed
from workers.errors import SecateurError
from workers.export import load_family, load_model, save_model
from workers.files import finish, write_text
from workers.messages import Record, RecoverTask
from workers.recovery import Optimizer, Precision, Recovery, learning_rate
from workers.recovery_losses import Tapped, recovery_loss

KEPT_CHECKPOINTS = 2
MODEL = "model.safetensors"


@dataclass
class Counts:
    """What happened in a training, across resumptions."""

    steps: int = 0
    skipped: int = 0
    samples: int = 0
    seconds: float = 0.0
    loss: float = float("nan")
    resumed_from: int = 0
    epoch_skipped: int = field(default=0)


def train(task: RecoverTask) -> Record | None:
    """Train a model on all ranks; rank 0 writes and returns the result."""
    started = time.time()
    device = _device()
    _join_process_group(device)
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(derived_seed(task.seed, "train"))
    model, masks = load_model(task.model)
    teacher = Tapped(load_model(task.teacher)[0].to(device).requires_grad_(False)).eval() if task.teacher else None
    student = Tapped(model.requires_grad_(True)).to(device)
    hold = ZeroHold(model, {layer: keep.to(device) for layer, keep in masks.items()})
    engine = _engine(student, task.recovery, device)
    trained = Training(task, engine, teacher, hold, device, rank, world)
    trained.run()
    state = _full_state(model, task.recovery.zero_stage)
    record = _store(task, state, masks, trained.counts, world, started) if rank == 0 else None
    dist.barrier()
    engine.destroy()
    return record


class ZeroHold:
    """Masks gradients of pruned weights, and notices gradients that are not finite, before anything else sees them."""

    def __init__(self, model: nn.Module, masks: dict[str, Tensor]) -> None:
        self.model, self.masks = model, masks
        self.broken = torch.zeros((), device=next(model.parameters()).device)
        for name, parameter in model.named_parameters():
            parameter.register_hook(self._hook(masks.get(name.removesuffix(".weight")) if name.endswith(".weight") else None))

    def _hook(self, mask: Tensor | None):
        def clean(gradient: Tensor) -> Tensor:
            finite = gradient.isfinite().all()
            self.broken += (~finite).float()
            gradient = torch.where(finite, gradient, torch.zeros_like(gradient))
            return gradient if mask is None else gradient * mask

        return clean

    def check(self, zero_stage: int) -> None:
        """Raises: SecateurError if a pruned weight is not exactly zero."""
        for layer, keep in self.masks.items():
            weight = self.model.get_parameter(f"{layer}.weight")
            with _gathered([weight], zero_stage):
                moved = int(torch.count_nonzero(weight.detach()[~keep]))
            if moved:
                raise SecateurError(f"{layer}: {moved} pruned weights moved during training; please report this, the result is not used")


class Training:
    """The loop over epochs, with a checkpoint after each."""

    def __init__(
        self, task: RecoverTask, engine: Any, teacher: nn.Module | None, hold: ZeroHold, device: torch.device, rank: int, world: int
    ) -> None:
        self.task, self.engine, self.teacher, self.hold, self.device = task, engine, teacher, hold, device
        self.rank, self.world, self.recovery = rank, world, task.recovery
        self.steps_per_epoch = task.data.size("train") // task.recovery.batch_size
        if self.steps_per_epoch == 0:
            raise SecateurError(
                f"recovery.batch_size: expected at most the {task.data.size('train')} training samples, got {task.recovery.batch_size}"
            )
        self.counts = Counts()
        self.checkpoints = Checkpoints(task.to.directory / "checkpoints", engine, rank)

    def run(self) -> None:
        first = self.checkpoints.resume(self.counts)
        self._truncate_progress()
        for epoch in range(first, self.recovery.epochs):
            self._epoch(epoch)
            self.hold.check(self.recovery.zero_stage)
            self.checkpoints.save(epoch + 1, self.counts)

    def _epoch(self, epoch: int) -> None:
        self.engine.train()
        torch.manual_seed(derived_seed(self.task.seed, "epoch", epoch, self.rank))
        self.counts.epoch_skipped, reported = 0, time.perf_counter()
        for batch in self.task.data.train(self.rank, self.world, epoch, self.recovery.batch_size):
            begun = time.perf_counter()
            self._step(batch.images_NCHW.to(self.device), batch.labels_N.to(self.device))
            self.counts.seconds += time.perf_counter() - begun
            last = self.counts.steps % self.steps_per_epoch == 0
            if last or time.perf_counter() - reported > 1.0:
                self._report(epoch)
                reported = time.perf_counter()
        if self.counts.epoch_skipped == self.steps_per_epoch:
            raise SecateurError(f"training: no step of epoch {epoch + 1} had a finite loss; lower recovery.lr, or check the data")

    def _step(self, images_NCHW: Tensor, labels_N: Tensor) -> None:
        """One step of all ranks. If any rank's loss or gradient is not finite, no rank changes a weight."""
        lr = learning_rate(self.recovery, self.counts.steps, self.steps_per_epoch)
        self.counts.steps += 1
        self.counts.samples += self.recovery.batch_size
        with self._autocast():
            with torch.no_grad():
                taught = None if self.teacher is None else self.teacher(images_NCHW)
            loss = recovery_loss(self.recovery, self.engine(images_NCHW), labels_N, taught)
        mean, finite = self._over_ranks(loss)
        if not finite:
            self._skip()
            return
        self.hold.broken.zero_()
        self.engine.backward(loss)
        dist.all_reduce(self.hold.broken)
        broken = bool(self.hold.broken > 0)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = 0.0 if broken else lr
        self.engine.step()
        if broken:
            self._skip()
        else:
            self.counts.loss = mean

    def _skip(self) -> None:
        self.counts.skipped += 1
        self.counts.epoch_skipped += 1

    def _over_ranks(self, loss: Tensor) -> tuple[float, bool]:
        total = torch.stack([loss.detach().float(), torch.isfinite(loss).float()])
        dist.all_reduce(total)
        return float(total[0]) / self.world, bool(total[1] == self.world)

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self.recovery.precision is Precision.BF16:
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def _report(self, epoch: int) -> None:
        if self.rank:
            return
        line = {
            "epoch": epoch + 1,
            "step": self.counts.steps,
            "steps": self.recovery.epochs * self.steps_per_epoch,
            "loss": self.counts.loss,
            "lr": learning_rate(self.recovery, self.counts.steps - 1, self.steps_per_epoch),
            "images_per_second": self.counts.samples / max(self.counts.seconds, 1e-9),
        }
        with self.task.progress.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _truncate_progress(self) -> None:
        """Leave out what was reported after the checkpoint that training resumes from."""
        if self.rank == 0:
            self.task.progress.parent.mkdir(parents=True, exist_ok=True)
            lines = self.task.progress.read_text(encoding="utf-8").splitlines() if self.task.progress.exists() else []
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= self.counts.steps]
            write_text(self.task.progress, "".join(line + "\n" for line in kept))


class Checkpoints:
    """After every epoch, all of the engine's state; a marker written last says that it is complete."""

    def __init__(self, directory: Path, engine: Any, rank: int) -> None:
        self.directory, self.engine, self.rank = directory, engine, rank

    def save(self, epoch: int, counts: Counts) -> None:
        self.engine.save_checkpoint(str(self.directory), tag=f"epoch{epoch}")
        dist.barrier()
        if self.rank == 0:
            entries = {name: value for name, value in vars(counts).items() if name not in ("resumed_from", "epoch_skipped")}
            write_text(self.directory / f"epoch{epoch}.json", json.dumps(entries))
            for old in self._complete()[KEPT_CHECKPOINTS:]:
                (self.directory / f"epoch{old}.json").unlink()
                shutil.rmtree(self.directory / f"epoch{old}", ignore_errors=True)
        dist.barrier()

    def resume(self, counts: Counts) -> int:
        """Load the newest checkpoint that all ranks can read; returns the epochs it has seen, 0 if there is none."""
        for epoch in self._complete():
            readable = torch.tensor(float(self._load(epoch)))
            readable = readable.to(self.engine.device)
            dist.all_reduce(readable, op=dist.ReduceOp.MIN)
            if readable:
                entries = json.loads((self.directory / f"epoch{epoch}.json").read_text(encoding="utf-8"))
                for name, value in entries.items():
                    setattr(counts, name, value)
                counts.resumed_from = epoch
                return epoch
            logging.getLogger(__name__).warning("checkpoint of epoch %d is damaged; trying the one before", epoch)
        return 0

    def _load(self, epoch: int) -> bool:
        try:
            return self.engine.load_checkpoint(str(self.directory), tag=f"epoch{epoch}")[0] is not None
        except Exception:  # whatever a damaged pickle raises
            return False

    def _complete(self) -> list[int]:
        return sorted((int(path.stem.removeprefix("epoch")) for path in self.directory.glob("epoch*.json")), reverse=True)


def _engine(student: nn.Module, recovery: Recovery, device: torch.device) -> Any:
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed

    # Its shared-memory collectives would be compiled here and now, with a compiler that a user may not have; gloo does their work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel(logging.ERROR)
    settings = {
        "train_micro_batch_size_per_gpu": recovery.batch_size // recovery.ranks,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": recovery.clip_norm,
        "zero_optimization": {"stage": recovery.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    with contextlib.redirect_stdout(None):
        return deepspeed.initialize(model=student, optimizer=_optimizer(student, recovery), config=settings, dist_init_required=False)[0]


def _optimizer(student: nn.Module, recovery: Recovery) -> torch.optim.Optimizer:
    """No weight decay on vectors: biases, norms, layer scales."""
    decayed = [p for p in student.parameters() if p.ndim > 1]
    others = [p for p in student.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recovery.weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if recovery.optimizer is Optimizer.ADAMW:
        return torch.optim.AdamW(groups, lr=recovery.lr)
    return torch.optim.SGD(groups, lr=recovery.lr, momentum=recovery.momentum)


def _full_state(model: nn.Module, zero_stage: int) -> dict[str, Tensor]:
    with _gathered(list(model.parameters()), zero_stage):
        return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


@contextlib.contextmanager
def _gathered(parameters: list[nn.Parameter], zero_stage: int) -> Iterator[None]:
    """Whole parameters: ZeRO-3 keeps only a part of each on a rank."""
    if zero_stage < 3:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters):
        yield


def _store(task: RecoverTask, state: dict[str, Tensor], masks: dict[str, Tensor], counts: Counts, world: int, started: float) -> Record:
    written = save_model(task.to.directory / MODEL, load_family(task.model), state, masks)
    numbers = {
        "steps": counts.steps,
        "skipped_steps": counts.skipped,
        "final_loss": counts.loss,
        "images_per_second": counts.samples / max(counts.seconds, 1e-9),
        "epochs_resumed_from": counts.resumed_from,
        "ranks": world,
        "zero_stage": task.recovery.zero_stage,
    }
    record = finish(task.to, "recover", {MODEL: written}, numbers, started)
    shutil.rmtree(task.to.directory / "checkpoints", ignore_errors=True)
    return record


def _device() -> torch.device:
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device("cpu")


def _join_process_group(device: torch.device) -> None:
    """The launcher's process group, or else one of our own. It lives as long as the process: DeepSpeed remembers the first one it sees."""
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
