"""``python -m orchestrator`` in a process of its own that finds torch and timm imported already: a second instead of seven."""

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path

IMPORTED = ["orchestrator.__main__", "orchestrator.launch", "orchestrator.report.page", "workers.worker", "torchvision", "sklearn.datasets"]
SECONDS = 3600  # against hanging: a busy machine may take many times what an idle one does


@dataclass(frozen=True)
class Ended:
    """What a command said, and its exit status."""

    returncode: int
    stdout: str
    stderr: str


def server() -> ForkServerContext:
    """Starts processes that are forked from one that only imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


def orchestrate(*arguments: str, cwd: Path) -> Ended:
    """The command with ``arguments``, forked from a server that only imports."""
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder) / name for name in ("stdout", "stderr")]
        process = server().Process(target=_carry_out, args=(list(arguments), cwd, said))
        process.start()
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
        stdout, stderr = (path.read_text(encoding="utf-8") if path.exists() else "" for path in said)
        assert process.exitcode is not None
        return Ended(process.exitcode, stdout, stderr)


class Running:
    """The command with ``arguments`` while it runs, forked like those of ``orchestrate``. What it prints goes to the file ``said``."""

    def __init__(self, *arguments: str, cwd: Path) -> None:
        self.said = Path(tempfile.mkdtemp(dir=cwd)) / "said"
        self.process = server().Process(target=_carry_out, args=(list(arguments), cwd, [self.said, self.said]))
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def text(self) -> str:
        return self.said.read_text(encoding="utf-8") if self.said.exists() else ""

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Returns as soon as ``ready`` holds; fails if the command ends before."""
        while not ready():
            assert self.process.is_alive(), f"it has ended:\n{self.text()}"
            time.sleep(0.002)

    def stop_when(self, ready: Callable[[], bool]) -> None:
        """Stops the command, without ending it, as soon as ``ready`` holds."""
        self.wait_until(ready)
        os.kill(self.pid, signal.SIGSTOP)

    def end(self) -> str:
        """Lets the command go on if it was stopped, waits for its end, and returns what it said."""
        os.kill(self.pid, signal.SIGCONT)
        self.process.join(SECONDS)
        return self.text()


def _carry_out(arguments: list[str], cwd: Path, said: list[Path]) -> None:
    from orchestrator.__main__ import main

    os.chdir(cwd)
    for stream, path in zip((1, 2), said, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    sys.argv = ["orchestrator", *arguments]
    main()
