"""The command line of this process."""

from __future__ import annotations

import shlex
import sys


def command() -> str:
    """Returns the command line, so that it can be repeated."""
    return shlex.join(["python", "-m", "orchestrator", *sys.argv[1:]])
