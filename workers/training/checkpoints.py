"""Checkpoints of a training: the engine's whole state after every epoch, used only if complete and undamaged."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from workers.disks import writing
from workers.errors import SecateurError
from workers.files import digest, read_sealed, write_sealed

KEPT = 2  # checkpoints on disk


class Checkpoints:
    """The checkpoints in a directory.

    ``epoch<n>/`` holds DeepSpeed's files. ``epoch<n>.json``, written last, holds the progress of the training and the files' digests.
    """

    def __init__(self, directory: Path, engine: Any) -> None:
        self.directory, self.engine = directory, engine
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def save(self, epoch: int, progress: dict[str, Any]) -> None:
        """Saves the state after ``epoch`` epochs and deletes all but the newest checkpoints."""
        if self.rank == 0:
            shutil.rmtree(self._folder(epoch), ignore_errors=True)  # files of a training that was killed while writing them
        dist.barrier()
        with writing(self._folder(epoch)):
            self.engine.save_checkpoint(str(self.directory), tag=self._folder(epoch).name)
        dist.barrier()
        digests = self._digests(epoch)
        if self.rank == 0:
            write_sealed(self._marker(epoch), {"progress": progress, "files": digests})
            for old in self._written()[KEPT:]:
                self._marker(old).unlink()
                shutil.rmtree(self._folder(old), ignore_errors=True)
        dist.barrier()

    def resume(self) -> tuple[int, dict[str, Any]]:
        """Loads the newest undamaged checkpoint. Returns its number of epochs and its progress; 0 and nothing if there is none.

        Raises: SecateurError if DeepSpeed cannot read an undamaged checkpoint.
        """
        for epoch in self._written():
            marker = self._read(epoch)
            undamaged = torch.tensor(float(marker is not None), device=self.engine.device)
            dist.all_reduce(undamaged, op=dist.ReduceOp.MIN)
            if marker is None or not undamaged or self._digests(epoch) != marker["files"]:
                if self.rank == 0:
                    logging.getLogger(__name__).warning("%s is damaged: the training resumes from an older checkpoint", self._folder(epoch))
                continue
            self._load(epoch)
            return epoch, marker["progress"]
        return 0, {}

    def _load(self, epoch: int) -> None:
        folder = self._folder(epoch)
        remedy = f"delete {self.directory} to train from the start"
        try:
            loaded, _ = self.engine.load_checkpoint(str(self.directory), tag=folder.name)
        except Exception as error:  # unpickling the state of another version may raise anything
            raise SecateurError(f"{folder}: expected a checkpoint that DeepSpeed can read, got: {error}; {remedy}") from error
        if loaded is None:
            raise SecateurError(f"{folder}: expected a checkpoint that DeepSpeed can read, got none; {remedy}")

    def _digests(self, epoch: int) -> dict[str, str]:
        """Returns the digests of all files of a checkpoint. Every rank reads a share of the files."""
        paths = sorted(path for path in self._folder(epoch).rglob("*") if path.is_file())
        mine = {str(path.relative_to(self.directory)): digest(path) for path in paths[self.rank :: self.world]}
        shares: list[dict[str, str]] = [{} for _ in range(self.world)]
        dist.all_gather_object(shares, mine)
        return {name: value for share in shares for name, value in sorted(share.items())}

    def _read(self, epoch: int) -> dict[str, Any] | None:
        try:
            return read_sealed(self._marker(epoch))
        except (OSError, ValueError):
            return None

    def _written(self) -> list[int]:
        """Returns the epochs that have a marker, newest first."""
        return sorted((int(path.stem.removeprefix("epoch")) for path in self.directory.glob("epoch*.json")), reverse=True)

    def _folder(self, epoch: int) -> Path:
        return self.directory / f"epoch{epoch}"

    def _marker(self, epoch: int) -> Path:
        return self.directory / f"epoch{epoch}.json"
