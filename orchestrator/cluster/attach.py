"""Checks that a running Ray cluster answers and whether it requires a token. Does not import Ray."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from workers.errors import ConfigError


def knock(address: str) -> None:
    """Checks that something listens at ``address``, since Ray would wait for minutes.

    Raises: ConfigError if nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise ConfigError(
                f"cluster.address: no Ray cluster answers at {address!r} ({error.strerror or error}); start one with `ray start`"
            ) from error


def settle_authentication(address: str) -> None:
    """Chooses Ray's authentication mode: the token of this machine if the cluster requires one. Call this before Ray is imported."""
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token" if _has_token() and not _answers_without_token(address) else "disabled"


def _has_token() -> bool:
    return any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")) or (Path.home() / ".ray" / "auth_token").exists()


def _answers_without_token(address: str) -> bool:
    """Returns whether the cluster answers without a token. Runs in another process, since Ray reads its mode once per process."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        status = subprocess.run(command, env=os.environ | {"RAY_AUTH_MODE": "disabled"}, capture_output=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return False
    return status.returncode == 0
