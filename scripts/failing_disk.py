"""A disk that becomes full or read-only, or that stands still, when it is told to. For ``chaos.py``."""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress
from pathlib import Path

MEBIBYTES = 64
UNMOUNT_SECONDS = 10.0


class Disk:
    """An ext4 file system in a file, mounted at ``directory``. Needs root on Linux, and a loop device.

    Raises: OSError or subprocess.CalledProcessError if this machine cannot mount one.
    """

    def __init__(self, directory: Path) -> None:
        self.directory, self._image, self._filling = directory, directory.with_name("disk.img"), directory / "filling"
        self._frozen = self._read_only = False
        directory.mkdir(parents=True, exist_ok=True)
        with self._image.open("wb") as image:
            image.truncate(MEBIBYTES * 2**20)
        _call("mkfs.ext4", "-q", "-F", "-m", "0", self._image)
        self._mount()

    def fill(self) -> None:
        """Leaves no room until ``mend`` is called."""
        self.thaw()
        with suppress(OSError), self._filling.open("wb", buffering=0) as filling:
            while True:
                filling.write(bytes(2**20))
        with suppress(OSError), self._filling.open("ab", buffering=0) as filling:
            while True:
                filling.write(bytes(2**9))

    def fail(self) -> None:
        """Lets the kernel find an error. The disk is read-only until ``mend`` is called; what had not reached it is lost."""
        self.thaw()
        device = subprocess.run(["findmnt", "-no", "SOURCE", self.directory], check=True, capture_output=True, text=True).stdout.strip()
        Path("/sys/fs/ext4", Path(device).name, "trigger_fs_error").write_text("1")
        self._read_only = True

    def freeze(self) -> None:
        """Lets all that write wait until ``thaw`` is called, unless nothing can be written anyway."""
        if not (self._frozen or self._read_only):
            _call("fsfreeze", "--freeze", self.directory)
            self._frozen = True

    def thaw(self) -> None:
        if self._frozen:
            _call("fsfreeze", "--unfreeze", self.directory)
            self._frozen = False

    def mend(self) -> None:
        """Lets the disk work again, as after a restart of the machine. No process may use it."""
        self.thaw()
        if self._read_only:
            self._unmount()
            if subprocess.run(["e2fsck", "-f", "-y", self._image], capture_output=True).returncode > 2:
                raise OSError(f"{self._image}: e2fsck could not mend it")
            self._mount()
            self._read_only = False
        self._filling.unlink(missing_ok=True)

    def remove(self) -> None:
        self.thaw()
        self._unmount()
        self._image.unlink()

    def _mount(self) -> None:
        _call("mount", "-o", "loop,errors=remount-ro", self._image, self.directory)

    def _unmount(self) -> None:
        limit = time.monotonic() + UNMOUNT_SECONDS
        while subprocess.run(["umount", self.directory], capture_output=True).returncode != 0:
            if time.monotonic() > limit:
                raise OSError(f"{self.directory}: it is still in use")
            time.sleep(0.1)


def _call(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
