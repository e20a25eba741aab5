"""The training loop: one rank's part of a gang that trains a model, keeps its zeros, and can be killed at any time."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from workers.errors import ConfigError, SecateurError
from workers.export import load_family, load_model, load_pruned, save_model
from workers.files import append_lines, finish, flush, read_lines, write_text
from workers.messages import TrainTask
from workers.models.blocks import recompute
from workers.numbers import derived_seed, finite
from workers.records import MODEL, Record, TrainedModel
from workers.training.checkpoints import Checkpoints
from workers.training.deepspeed import Steps, ZeroHold, end_process_group, full_state, gathered, quiet, start_engine
from workers.training.losses import Tapped, freeze_unused, training_loss
from workers.training.meeting import meet
from workers.training.settings import check, learning_rate

REPORT_SECONDS = 1.0
SKIPPED = 32  # steps in a row that are not finite: the weights do not change meanwhile, so a training that diverged does not come back


@dataclass
class Counts:
    """What happened in a training, across resumptions.

    ``in_a_row`` counts the steps that were ``skipped`` since the last finite one, whose loss is ``loss``; ``seconds`` include reading the
    data.
    """

    steps: int = 0
    skipped: int = 0
    in_a_row: int = 0
    samples: int = 0
    seconds: float = 0.0
    loss: float = float("nan")


def train(task: TrainTask, asked: str | None = None) -> Record[TrainedModel] | None:
    """One rank's part of a gang; rank 0 writes and returns the result. RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT are set.

    ``asked`` is ``cpu`` or ``cuda``. None takes the device of the launcher's process group; without one, a GPU if there is one.
    Raises: ConfigError (see ``settings.check``); SecateurError if the training diverged, or if a masked weight moved.
    """
    started = time.monotonic()
    device = _device(asked)
    with quiet(), _process_group(device):
        _check(task)
        torch.manual_seed(derived_seed(task.seed, "train"))
        model, masks = load_model(task.model)
        freeze_unused(model.requires_grad_(True), task.training)
        if task.training.recompute:
            recompute(model)
        student = Tapped(model, task.training.precision).to(device)
        teacher = _teacher(task, device)
        hold = ZeroHold(model, masks, device)
        engine, steps = start_engine(student, task.training, device)
        loop = Loop(task, engine, steps, teacher, hold)
        resumed_from = loop.run()
        state = full_state(model, task.training.zero_stage)
        record = _store(task, state, masks, loop.counts, resumed_from, started) if dist.get_rank() == 0 else None
        dist.barrier()
        engine.destroy()
        return record


class Loop:
    """The loop over epochs, with a checkpoint after each."""

    def __init__(self, task: TrainTask, engine: Any, steps: Steps, teacher: nn.Module | None, hold: ZeroHold) -> None:
        self.task, self.engine, self.steps, self.teacher, self.hold = task, engine, steps, teacher, hold
        self.rank, self.world, self.settings = dist.get_rank(), dist.get_world_size(), task.training
        self.steps_per_epoch = task.data.size("train") // task.training.batch_size
        self.buffers = list(engine.module.buffers())  # running statistics see a batch before it is known to be finite
        self.counts = Counts()
        self.checkpoints = Checkpoints(task.to.directory / "checkpoints", engine)

    def run(self) -> int:
        """Train to the end; returns the number of epochs that were done before, in a training that was killed."""
        first, progress = self.checkpoints.resume()
        self.counts = Counts(**progress)
        self._truncate_progress()
        for epoch in range(first, self.settings.epochs):
            self._epoch(epoch)
            self.hold.check(self.settings.zero_stage)
            self._report(epoch)
            self.checkpoints.save(epoch + 1, asdict(self.counts))
        return first

    def _epoch(self, epoch: int) -> None:
        self.engine.train()
        torch.manual_seed(derived_seed(self.task.seed, "epoch", epoch, self.rank))
        begun = reported = time.perf_counter()
        for batch in self.task.data.train(self.rank, self.world, epoch, self.settings.batch_size):
            self._step(batch.images_NCHW.to(self.engine.device), batch.labels.to(self.engine.device))
            now = time.perf_counter()
            self.counts.seconds += now - begun
            begun = now
            if now - reported > REPORT_SECONDS and self.counts.steps % self.steps_per_epoch:
                self._report(epoch)
                reported = now
            if self.counts.in_a_row >= min(SKIPPED, self.steps_per_epoch):
                raise self._diverged(f"NaN or infinity in the last {self.counts.in_a_row} steps")
        parameters = list(self.engine.module.parameters())
        with gathered(parameters, self.settings.zero_stage):
            if not all(finite(parameter) for parameter in parameters):
                raise self._diverged("weights that are not")

    def _diverged(self, got: str) -> SecateurError:
        """Returns the error of a training whose numbers are not finite. The checkpoint of the epoch before stays."""
        step, steps = self.counts.steps, self.settings.epochs * self.steps_per_epoch
        return SecateurError(
            f"training: expected finite numbers, got {got} at step {step} of {steps}; lower the learning rate (recovery.lr, or "
            "training.lr of the dense model), or check the data"
        )

    def _step(self, images_NCHW: Tensor, labels: Tensor) -> None:
        """One step of all ranks; skipped by all of them if a loss or a gradient is not finite on any."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, self.counts.steps, self.steps_per_epoch)
        self.hold.broken.zero_()
        before = [buffer.clone() for buffer in self.buffers]
        with torch.no_grad():
            taught = None if self.teacher is None else self.teacher(images_NCHW)
        loss = training_loss(self.settings, self.engine.module.model, self.engine(images_NCHW), labels, taught)
        self.engine.backward(loss)
        total = torch.stack([loss.detach().float(), (self.hold.broken | ~torch.isfinite(loss)).float()])
        dist.all_reduce(total)
        mean, broken = (total / self.world).tolist()
        self.steps.skip = broken > 0
        self.engine.step()
        self.counts.steps += 1
        self.counts.samples += self.settings.batch_size
        if self.steps.skip:
            self.counts.skipped += 1
            self.counts.in_a_row += 1
            for buffer, old in zip(self.buffers, before, strict=True):
                buffer.copy_(old)
        else:
            self.counts.in_a_row = 0
            self.counts.loss = mean

    def _report(self, epoch: int) -> None:
        if self.rank:
            return
        line = {
            "epoch": epoch + 1,
            "step": self.counts.steps,
            "steps": self.settings.epochs * self.steps_per_epoch,
            "loss": self.counts.loss,
            "lr": learning_rate(self.settings, self.counts.steps - 1, self.steps_per_epoch),
            "images_per_second": self.counts.samples / max(self.counts.seconds, 1e-9),
        }
        append_lines(self.task.progress, [line])
        flush(self.task.progress)  # before the checkpoint that says it is there

    def _truncate_progress(self) -> None:
        """Leave out what was reported after the checkpoint that training resumes from."""
        if self.rank == 0:
            steps = range(self.counts.steps + 1)
            kept = [line for line in read_lines(self.task.progress) if line.get("step") in steps]
            write_text(self.task.progress, "".join(json.dumps(line) + "\n" for line in kept))


def _check(task: TrainTask) -> None:
    settings = task.training
    if dist.get_world_size() != settings.ranks:
        raise ConfigError(f"recovery.ranks: expected the {dist.get_world_size()} processes of the gang, got {settings.ranks}")
    check(settings, task.data, load_family(task.model).output, task.teacher is not None)


def _teacher(task: TrainTask, device: torch.device) -> nn.Module | None:
    if task.teacher is None:
        return None
    return Tapped(load_pruned(task.teacher).requires_grad_(False), task.training.precision).to(device).eval()


def _store(
    task: TrainTask, state: dict[str, Tensor], masks: dict[str, Tensor], counts: Counts, resumed_from: int, started: float
) -> Record[TrainedModel]:
    written = save_model(task.to.directory / MODEL, load_family(task.model), state, masks)
    numbers = TrainedModel(
        steps=counts.steps,
        skipped_steps=counts.skipped,
        final_loss=counts.loss,
        images_per_second=counts.samples / max(counts.seconds, 1e-9),
        seconds=counts.seconds,
        epochs_resumed_from=resumed_from,
        ranks=task.training.ranks,
        zero_stage=task.training.zero_stage,
    )
    record = finish(task.to, numbers, started, written)
    shutil.rmtree(task.to.directory / "checkpoints", ignore_errors=True)
    return record


def _device(asked: str | None) -> torch.device:
    """This rank's device. Where a launcher shows each rank only its own GPU, that is number 0, whatever LOCAL_RANK says."""
    if asked is None and dist.is_initialized():
        asked = "cuda" if "nccl" in dist.get_backend() else "cpu"
    if asked == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local, visible = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= visible > 1:
        raise SecateurError(f"recovery.ranks: expected at most the {visible} GPUs of this machine, got rank {local}; lower settings.ranks")
    os.environ["LOCAL_RANK"] = str(local % visible)
    torch.cuda.set_device(local % visible)
    return torch.device("cuda", local % visible)


@contextlib.contextmanager
def _process_group(device: torch.device) -> Iterator[None]:
    """The launcher's process group, or one of our own that ends with the training."""
    if dist.is_initialized():
        yield
        return
    meet("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        end_process_group()
