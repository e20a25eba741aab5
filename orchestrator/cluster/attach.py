"""What a running Ray cluster asks of those who attach to it: a token, or nothing."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cluster.doors import ray_environment
from workers.checks import Phrase, require
from workers.errors import ConfigError

if TYPE_CHECKING:
    import grpc

ADDRESS = re.compile(r"(?:ray://)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s/:]+):(?P<port>\d{1,5})")
SECONDS = 10.0  # that a cluster may take to answer
REMEDY = "start it with RAY_AUTH_MODE=token (docs/security.md)"


@contextmanager
def attached(address: str, insecure: bool, warn: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """A context in which ``ray.init``, with the arguments that it gives, attaches to the cluster at ``address``.

    Warns if the cluster runs what anyone sends it. Raises: ConfigError if it does and is not on this machine, unless ``insecure``; if it
    does not accept this machine's token; or if nothing answers.
    """
    found = _located(address)
    with ray_environment({"RAY_AUTH_MODE": _authentication(found, insecure, warn)}):
        yield {"address": found}


def _located(address: str) -> str:
    """Returns the address that ``auto`` stands for, and others as they are. Raises: ConfigError if there is none."""
    if address == "auto":
        from ray._private.services import get_ray_address_from_environment

        try:
            address = get_ray_address_from_environment("auto", None)
        except ConnectionError as error:
            raise no_answer("auto", "none was started on this machine") from error
    expected = "auto, host:port or ray://host:port, or null to start Ray on this machine"
    require(ADDRESS.fullmatch(address) is not None, "cluster.address", expected, address)
    return address


def _authentication(address: str, insecure: bool, warn: Callable[[str], None]) -> str:
    """Returns Ray's mode of authentication for this cluster: ``token`` or ``disabled``. Warns and raises as ``attached`` does."""
    token = _token()
    if _lets_in(address, None):
        if _uses_tls():  # it asked for a certificate
            return "disabled"
        expected, got = "a Ray cluster that asks for a token", Phrase(f"{address}, which runs what anyone sends it")
        require(insecure or _is_here(address), "cluster.address", expected, got, f"{REMEDY}, or set cluster.insecure=true")
        warn(f"the Ray cluster at {address} asks for no token: whoever reaches it can run code in your name; {REMEDY}")
        return "disabled"
    expected, remedy = f"the token of the Ray cluster at {address}", "set RAY_AUTH_TOKEN_PATH to a file that contains it"
    require(token is not None, "cluster.address", expected, None, remedy)
    require(_lets_in(address, token), "cluster.address", expected, Phrase("another one"), remedy)
    return "token"


def no_answer(address: str, reason: str) -> ConfigError:
    tls = "check the certificates, since RAY_USE_TLS is set" if _uses_tls() else "set RAY_USE_TLS=1 if it uses TLS"
    return ConfigError(f"cluster.address: no Ray cluster answers at {address!r} ({reason}); start one with `ray start`, or {tls}")


def _lets_in(address: str, token: str | None) -> bool:
    """Returns whether the cluster answers what only its users may ask. Raises: ConfigError if no cluster answers at all."""
    import grpc

    service = "RayletDriver/ClusterInfo" if address.startswith("ray://") else "NodeInfoGcsService/GetAllNodeInfo"
    target = _target(address)
    with _channel(target) as channel:
        try:
            channel.unary_unary(f"/ray.rpc.{service}")(b"", SECONDS, [] if token is None else [("authorization", f"Bearer {token}")])
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                reason = f"{error.details()}".rpartition(": ")[2]
                raise no_answer(address, reason if target in address else f"{target}: {reason}") from error
            return error.code() is not grpc.StatusCode.UNAUTHENTICATED
    return True


def _target(address: str) -> str:
    """Returns the address that Ray connects to: for 127.0.0.1 that of this node, which the certificate of the cluster may lack."""
    from ray._private.services import canonicalize_bootstrap_address

    return address.removeprefix("ray://") if address.startswith("ray://") else str(canonicalize_bootstrap_address(address))


def _channel(target: str) -> grpc.Channel:
    """Returns a channel with the certificates that Ray would show. Raises: ConfigError if they cannot be read."""
    import grpc

    if not _uses_tls():
        return grpc.insecure_channel(target)
    from ray._common.tls_utils import load_certs_from_env

    try:
        chain, key, authority = load_certs_from_env()
    except (RuntimeError, OSError) as error:
        files = "RAY_TLS_SERVER_CERT, RAY_TLS_SERVER_KEY and RAY_TLS_CA_CERT to be files that can be read"
        raise ConfigError(f"RAY_USE_TLS: expected {files}, got: {error}") from error
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(authority, key, chain))


def _uses_tls() -> bool:
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")  # as Ray reads it


def _token() -> str | None:
    """Returns the token that Ray would show to a cluster."""
    if "RAY_AUTH_TOKEN" in os.environ:
        return os.environ["RAY_AUTH_TOKEN"].strip()
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(given) if given else Path.home() / ".ray" / "auth_token"
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        if given is None:
            return None
        raise ConfigError(f"RAY_AUTH_TOKEN_PATH: expected a file that can be read, got {given} ({error.strerror})") from error


def _is_here(address: str) -> bool:
    """Returns whether all addresses that the name of the host stands for are of this machine."""
    import psutil

    match = ADDRESS.fullmatch(address)
    assert match is not None
    found = {ip_address(entry[4][0]) for entry in socket.getaddrinfo(match["host"].strip("[]"), None)}
    entries = chain.from_iterable(psutil.net_if_addrs().values())
    own = {ip_address(entry.address.partition("%")[0]) for entry in entries if entry.family in (socket.AF_INET, socket.AF_INET6)}
    return all(place.is_loopback or place in own for place in found)
