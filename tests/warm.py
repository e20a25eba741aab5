"""``python -m orchestrator`` in a process of its own that finds torch and timm imported already: a second instead of seven."""

import multiprocessing
import os
import sys
import tempfile
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


def _carry_out(arguments: list[str], cwd: Path, said: list[Path]) -> None:
    from orchestrator.__main__ import main

    os.chdir(cwd)
    for stream, path in zip((1, 2), said, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    sys.argv = ["orchestrator", *arguments]
    main()
