"""Watches, from outside, where the processes of a run listen, whether they let strangers in, and who can read the secret of their Ray."""

from __future__ import annotations

import stat
import threading
from collections import defaultdict
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any

import grpc
import psutil

ASKED = {  # what a stranger would call to run code, or to find out how
    "gcs_server": ("NodeInfoGcsService/GetAllNodeInfo", "InternalKVGcsService/InternalKVKeys"),
    "raylet": ("NodeManagerService/RequestWorkerLease", "ObjectManagerService/Push"),
    "ray::": ("CoreWorkerService/PushTask",),
    "python": ("CoreWorkerService/PushTask",),  # the driver, and workers that have just started
}
REFUSED, UNKNOWN, OFFLINE = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE


class Watch(threading.Thread):
    """Looks at a process and its descendants until the context ends, and calls what listens if it ``knocks``."""

    def __init__(self, pid: int, knocks: bool = False) -> None:
        super().__init__(daemon=True)
        self.knocks = knocks
        self.root, self._over = psutil.Process(pid), threading.Event()
        self.listening: defaultdict[str, set[str]] = defaultdict(set)  # addresses, by the first word of the command line
        self.answers: defaultdict[str, set[Any]] = defaultdict(set)  # of those that strangers got, by the same
        self.secrets: dict[Path, str] = {}  # tokens of Ray, by their files
        self.shown: set[str] = set()  # command lines that contain a token
        self.readable: set[Path] = set()  # tokens, and folders of Ray, that other users may read or enter
        self._known: set[tuple[int, int]] = set()

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(0.2):
            try:
                processes = [self.root, *self.root.children(recursive=True)]
            except psutil.Error:
                return
            for process in processes:
                try:
                    self._look(process, " ".join(process.cmdline()))
                except (psutil.Error, OSError):  # it has ended
                    continue

    def _look(self, process: psutil.Process, command: str) -> None:
        name = Path(command.split()[0]).name if command.split() else ""
        if (file := process.environ().get("RAY_AUTH_TOKEN_PATH")) and Path(file).exists():
            token = Path(file)
            self.secrets[token] = token.read_text()
            self.readable |= {path for path in (token, token.parent) if stat.S_IMODE(path.stat().st_mode) & 0o077}
        self.shown |= {command for secret in self.secrets.values() if secret and secret in command}
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                self.listening[name].add(connection.laddr.ip)
                if self.knocks and (process.pid, connection.laddr.port) not in self._known:
                    self._known.add((process.pid, connection.laddr.port))
                    self.answers[name] |= self._tried(name, connection.laddr.port)

    def _tried(self, name: str, port: int) -> set[Any]:
        calls = next((calls for start, calls in ASKED.items() if name.startswith(start)), ())
        return {answer(port, call, token) for call in calls for token in (None, "0" * 64)} - {UNKNOWN, OFFLINE}

    @property
    def open_to_others(self) -> dict[str, set[str]]:
        """The addresses that other machines reach, by the process that listens."""
        found = {name: {place for place in places if not _is_loopback(place)} for name, places in self.listening.items()}
        return {name: places for name, places in found.items() if places}


def answer(port: int, call: str, token: str | None) -> Any:
    """The status with which Ray answers a call; None if it does what it is asked for."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            channel.unary_unary(f"/ray.rpc.{call}")(b"", 5, [("authorization", f"Bearer {token}")] if token else [])
        except grpc.RpcError as error:
            return error.code()
    return None


def _is_loopback(address: str) -> bool:
    place = ip_address(address)
    mapped = place.ipv4_mapped if isinstance(place, IPv6Address) else None
    return (mapped or place).is_loopback
