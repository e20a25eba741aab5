"""Small problems for the tests of training, a training loop in plain torch for comparison, and two processes that train together."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.data.base import Batch, Dataset
from workers.export import load_model, save_model
from workers.messages import TrainTask
from workers.models.timm import TimmModel
from workers.precision import Precision
from workers.records import Destination
from workers.training.loop import train
from workers.training.settings import Distill, Optimizer, Schedule, Training, learning_rate

VIT = TimmModel(
    name="vit_tiny_patch16_224",
    arguments={"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
    checkpoint=None,
    include=["*.attn.qkv", "*.attn.proj", "*.mlp.fc*"],
    exclude=[],
)
HEADLESS = replace(VIT, arguments=VIT.arguments | {"num_classes": 0})
CNN = TimmModel(
    name="test_resnet", arguments={"in_chans": 1, "num_classes": 4}, checkpoint=None, include=["*"], exclude=[]
)  # with batch norms


@dataclass
class Stripes(Dataset):
    """8 x 8 noise with a bright stripe at one of four heights. ``nan_steps`` of every epoch hold a NaN in their last sample,
    and so do all steps of the training from ``nan_from`` on (-1: none).
    """

    samples: int
    nan_steps: list[int]
    nan_from: int
    fails_in_epoch: int  # -1: never; stands for a machine that goes down
    size_px: int
    labelled: bool

    def check(self) -> None: ...

    def fingerprint(self) -> str:
        return repr(asdict(self))

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return 1, self.size_px, self.size_px

    @property
    def classes(self) -> int:
        return 4 if self.labelled else 0

    def size(self, split: str) -> int:
        return self.samples

    def calibration(self, shard: int, shards: int) -> Iterator[Batch]:
        raise NotImplementedError

    def evaluation(self, split: str, shard: int, shards: int) -> Iterator[Batch]:
        raise NotImplementedError

    def train(self, rank: int, world: int, epoch: int, batch_size: int) -> Iterator[Batch]:
        for step in range(self.samples // batch_size):
            if epoch == self.fails_in_epoch:
                raise OSError("the data went away")
            draw = torch.Generator().manual_seed(1_000_003 * self.seed + 1009 * epoch + step)
            images_NCHW = torch.randn(batch_size, 1, self.size_px, self.size_px, generator=draw)
            labels_N = torch.randint(4, (batch_size,), generator=draw)
            for image, label in zip(images_NCHW, labels_N, strict=True):
                image[0, 2 * int(label)] += 2
            if step in self.nan_steps or 0 <= self.nan_from <= epoch * (self.samples // batch_size) + step:
                images_NCHW[-1, 0, 0, 0] = float("nan")
            mine = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
            yield Batch(images_NCHW[mine], labels_N[mine] if self.labelled else torch.full_like(labels_N[mine], -1))


def stripes(**changes: Any) -> Stripes:
    settings: dict[str, Any] = {"seed": 0, "calibration_batches": 1, "calibration_batch_size": 1, "shards": 1, "eval_batch_size": 1}
    settings |= {"samples": 64, "nan_steps": [], "nan_from": -1, "fails_in_epoch": -1, "size_px": 8, "labelled": True}
    return Stripes(**(settings | changes))


def recipe(**changes: Any) -> Training:
    """16 steps of AdamW in 2 epochs, with everything on that should be compared."""
    settings: dict[str, Any] = {
        "epochs": 2,
        "batch_size": 8,
        "optimizer": Optimizer.ADAMW,
        "lr": 3e-3,
        "final_lr": 1e-5,
        "schedule": Schedule.COSINE,
        "cycle_epochs": 0,
        "warmup_epochs": 0.5,
        "weight_decay": 0.1,
        "momentum": 0.9,
        "label_smoothing": 0.1,
        "clip_norm": 0.5,
        "zero_stage": 0,
        "precision": Precision.FP32,
        "recompute": False,
        "ranks": 1,
        "distill": Distill.NONE,
        "distill_weight": 0.0,
        "temperature": 1.0,
    }
    return Training(**(settings | changes))


def sparse_model(path: Path, family: TimmModel = VIT, seed: int = 0, sparsity: float = 0.6) -> Path:
    """A model file with random weights, of which a random part is pruned in every prunable layer."""
    torch.manual_seed(seed)
    model = family.build()
    state = model.state_dict()
    masks = {}
    for layer in family.layers(model) if sparsity else []:
        keep = torch.rand(state[f"{layer.name}.weight"].shape) >= sparsity
        state[f"{layer.name}.weight"] = torch.where(keep, state[f"{layer.name}.weight"], 0.0)
        masks[layer.name] = keep
    save_model(path, family, state, masks)
    return path


def task(folder: Path, model: Path, recovery: Training, data: Stripes | None = None, teacher: Path | None = None) -> TrainTask:
    to = Destination(folder.name, folder)
    return TrainTask(model, teacher, data or stripes(), recovery, 7, folder / "progress.jsonl", to)


def plain_training(path: Path, recovery: Training, data: Stripes, leave_out: tuple[int, ...] = ()) -> dict[str, Tensor]:
    """The same training as a loop anyone would write, masks by multiplication. Returns the state dict. Label loss only."""
    model, masks = load_model(path)
    model.train()
    parameters = dict(model.named_parameters())
    matrices = [p for p in parameters.values() if p.ndim > 1]
    vectors = [p for p in parameters.values() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": recovery.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    adam = recovery.optimizer is Optimizer.ADAMW
    optimizer = torch.optim.AdamW(groups) if adam else torch.optim.SGD(groups, lr=1.0, momentum=recovery.momentum)
    steps_per_epoch = data.samples // recovery.batch_size
    for epoch in range(recovery.epochs):
        for step, (images_NCHW, labels_N) in enumerate(data.train(0, 1, epoch, recovery.batch_size)):
            if step in leave_out:
                continue
            optimizer.zero_grad()
            functional.cross_entropy(model(images_NCHW), labels_N, label_smoothing=recovery.label_smoothing).backward()
            for layer, keep in masks.items():
                parameters[f"{layer}.weight"].grad *= keep
            if recovery.clip_norm:
                nn.utils.clip_grad_norm_(parameters.values(), recovery.clip_norm)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recovery, epoch * steps_per_epoch + step, steps_per_epoch)
            optimizer.step()
    return model.state_dict()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _serve(rank: int, world: int, port: int, connection: Any) -> None:
    """One rank, started by a launcher that has made the process group already, as Ray Train does."""
    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    torch.distributed.init_process_group("gloo")
    while (sent := connection.recv()) is not None:
        try:
            connection.send(train(sent))
        except Exception as error:
            connection.send(error)
    torch.distributed.destroy_process_group()


class Gang:
    """Two ranks that train one task after another."""

    def __init__(self, world: int = 2) -> None:
        context, port = multiprocessing.get_context("spawn"), free_port()
        pipes = [context.Pipe() for _ in range(world)]
        self._ends = [here for here, _ in pipes]
        self._processes = [
            context.Process(target=_serve, args=(rank, world, port, there), daemon=True) for rank, (_, there) in enumerate(pipes)
        ]
        for process in self._processes:
            process.start()

    def train(self, sent: TrainTask) -> list[Any]:
        """What every rank returned or raised."""
        for end in self._ends:
            end.send(sent)
        assert all(end.poll(3600) for end in self._ends), "a rank hangs"
        return [end.recv() for end in self._ends]

    def close(self) -> None:
        for end in self._ends:
            end.send(None)
        for process in self._processes:
            process.join(20)
            process.kill()
