"""The doors of the Ray that is started here: open to this machine alone, and to whoever has its secret."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.cluster.base import cores_here
from orchestrator.cluster.watch import delete_if_killed

LONGEST = 20  # bytes of the path of a folder for temporary files: those of Ray's sockets in it have 86 more, and may have 107
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # the setting of Ray, for Linux too, by which 0 binds everything to the loopback interface


@contextmanager
def closed_doors() -> Iterator[dict[str, Any]]:
    """A context in which ``ray.init``, with the arguments that it gives, starts a Ray for this process and those that it starts.

    It listens on the loopback interface, asks for a new token, and hides its files from other users, which are deleted at the end.
    """
    folder = Path(tempfile.mkdtemp(prefix="secateur-", dir=_place()))  # only for its owner; Ray opens the folders inside to everybody
    delete_if_killed(str(folder))
    token = folder / "token"
    token.touch(0o600)
    token.write_text(secrets.token_hex(32), encoding="utf-8")
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": None, "RAY_AUTH_TOKEN_PATH": str(token)}
    try:
        with ray_environment(secret | {LOOPBACK: "0", "RAY_USE_TLS": None}):  # a user's certificates are those of another machine
            yield {"address": "local", "num_cpus": cores_here(), "include_dashboard": False, "_temp_dir": str(folder / "ray")}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def ray_environment(variables: Mapping[str, str | None]) -> Iterator[None]:
    """A context in which the environment has these variables (None: lacks them), and Ray has read them, also if it was imported before."""
    before = {name: os.environ.get(name) for name in variables}
    _set(variables)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    import ray
    from ray._private import ray_constants

    raylet: Any = ray._raylet  # compiled, without types
    ray_constants.ENABLE_RAY_CLUSTER = os.environ.get(LOOPBACK) != "0"
    raylet.Config.initialize("")  # reads RAY_AUTH_MODE
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def _place() -> str:
    """Returns the folder for temporary files that Ray would take, or /tmp if its path is too long for the sockets of Ray."""
    place = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    return place if len(place.encode()) <= LONGEST else "/tmp"
