"""Reaching a Ray cluster that runs already: is anybody there, and does it ask for a token? Imports no Ray."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from workers.errors import ConfigError


def knock(address: str) -> None:
    """Ray would wait for minutes at an address where nobody listens. Raises: ConfigError."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise ConfigError(
                f"cluster.address: nothing answers at {address!r} ({error.strerror or error}); start a cluster with `ray start`"
            ) from error


def settle_authentication(address: str) -> None:
    """Show the token on this machine to a cluster that asks for one. Ray reads the mode when it is imported: call this before."""
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token" if _has_token() and not _answers_without_token(address) else "disabled"


def _has_token() -> bool:
    return any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")) or (Path.home() / ".ray" / "auth_token").exists()


def _answers_without_token(address: str) -> bool:
    """Whether a cluster talks to strangers. Asked from another process, since Ray settles its mode once per process."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        asked = subprocess.run(command, env=os.environ | {"RAY_AUTH_MODE": "disabled"}, capture_output=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return False
    return asked.returncode == 0
