"""Who may join a Ray: the one that a run starts is for this run alone, and a cluster that lets everybody in is refused or warned of."""

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from orchestrator.cluster.attach import attached
from orchestrator.cluster.doors import LONGEST, LOOPBACK, closed_doors
from orchestrator.composing import experiment_of
from workers.errors import ConfigError, SecateurError
from workers.training.meeting import free_port

NOBODYS = "203.0.113.7"  # kept for documentation
NAMES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@pytest.fixture(autouse=True)
def without_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*NAMES, "RAY_ADDRESS", "RAY_USE_TLS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def environment() -> dict[str, str]:
    return {name: os.environ[name] for name in NAMES if name in os.environ}


def test_every_ray_has_a_secret_of_its_own_in_a_folder_that_only_its_owner_enters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of another cluster")
    before, secrets = environment(), set()
    for _ in range(2):
        with closed_doors() as arguments:
            assert environment().keys() == {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"} and os.environ["RAY_AUTH_MODE"] == "token"
            file = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
            secrets.add(file.read_text())
            assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
            assert file.parent in Path(arguments["_temp_dir"]).parents
        assert not file.parent.exists() and environment() == before and LOOPBACK not in os.environ
    assert len(secrets) == 2 and all(len(secret) == 64 for secret in secrets)


@pytest.mark.parametrize(("length", "taken"), [(LONGEST, True), (LONGEST + 1, False)])
def test_the_paths_of_rays_sockets_are_short_enough(length: int, taken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="") as folder:
        place = Path(folder) / ("x" * (length - len(folder) - 1))
        place.mkdir()
        monkeypatch.setenv("RAY_TMPDIR", str(place))
        with closed_doors() as arguments:
            assert (place in Path(arguments["_temp_dir"]).parents) == taken
            session = "session_2026-12-31_23-59-59_999999_4194304/sockets/plasma_store"
            assert len(f"{arguments['_temp_dir']}/{session}") <= 107, "the limit of Linux"


@contextmanager
def answering(token: str | None) -> Iterator[str]:
    """The address of a server that answers everything, like Ray, to those who show the token (None: to everybody)."""

    def carry_out(request: bytes, context: grpc.ServicerContext) -> bytes:
        if token is not None and dict(context.invocation_metadata()).get("authorization") != f"Bearer {token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return b""

    class All(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(carry_out)

    server = grpc.server(ThreadPoolExecutor(2), handlers=[All()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@pytest.fixture
def join() -> Callable[..., tuple[dict[str, str], list[str]]]:
    """Attaches, and returns how Ray would be set, and the warnings."""

    def attach(address: str, insecure: bool = False) -> tuple[dict[str, str], list[str]]:
        warnings: list[str] = []
        with attached(address, insecure, warnings.append) as arguments:
            assert arguments == {"address": address}
            return environment(), warnings

    return attach


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_with_a_token_is_joined_with_it_and_not_without_or_with_another(
    scheme: str, join: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with answering("right") as address:
        with pytest.raises(ConfigError, match=rf"cluster.address: expected the token of .*{address}, got None; set RAY_AUTH_TOKEN_PATH"):
            join(scheme + address)
        (tmp_path / "token").write_text("right\n")
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        assert join(scheme + address) == ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}, [])
        assert os.environ["RAY_AUTH_MODE"] == "disabled", "as before"
        monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
        with pytest.raises(ConfigError, match=r"expected the token of .*, got another one; set RAY_AUTH_TOKEN_PATH"):
            join(scheme + address)
        monkeypatch.delenv("RAY_AUTH_TOKEN")
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "missing"))
        with pytest.raises(ConfigError, match=r"RAY_AUTH_TOKEN_PATH: expected a file that can be read, got .*missing"):
            join(scheme + address)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_without_a_token_is_warned_of_here_and_refused_elsewhere(
    scheme: str, join: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(None) as here:
        settings, (warning,) = join(scheme + here)
        assert settings == {"RAY_AUTH_MODE": "disabled"}
        assert f"{here} asks for no token" in warning and "RAY_AUTH_MODE=token" in warning and "\n" not in warning
        monkeypatch.setattr("socket.getaddrinfo", lambda host, port: [(2, 1, 6, "", (NOBODYS, 0))])  # for documentation: nobody has it
        elsewhere = scheme + here.replace("127.0.0.1", "localhost")
        with pytest.raises(ConfigError, match=r"expected a Ray cluster that asks for a token, got .*cluster.insecure=true"):
            join(elsewhere)
        assert len(join(elsewhere, insecure=True)[1]) == 1
        monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"eth0": [psutil._ntuples.snicaddr(2, NOBODYS, None, None, None)]})
        assert len(join(elsewhere)[1]) == 1, "an address of this machine"


def test_what_is_no_address_and_where_nobody_answers_is_refused_in_one_line(join: Callable[..., Any]) -> None:
    for wrong in ("local", "", "host", "http://host:1", "host:port", "ray://host", "a b:1"):
        with pytest.raises(ConfigError, match=r"cluster.address: expected auto, host:port or ray://host:port, or null"):
            join(wrong)
    with pytest.raises(ConfigError, match=r"^cluster.address: no Ray cluster answers at '127.0.0.1:\d+' \(.*\); start one"):
        join(f"127.0.0.1:{free_port('127.0.0.1')}")


def test_a_rank_that_cannot_listen_at_the_address_of_the_gang_says_so_in_one_line() -> None:
    with pytest.raises(SecateurError, match=r"training: rank 0 cannot listen at 203.0.113.7 .*--node-ip-address"):
        free_port(NOBODYS)


def test_settings_that_read_the_environment_are_refused_since_they_are_written_into_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    for override in (
        "name=${oc.env:SECRET}",
        "+model.arguments.key=x${oc.env:SECRET,none}",
        "+model.arguments.keys=[1,{a:'${ oc.env:SECRET}'}]",
    ):
        with pytest.raises(ConfigError, match=r"expected a value, got .*oc.env.*SECRET.*\$SECRET") as refused:
            experiment_of([override])
        assert "hunter2" not in str(refused.value) and "\n" not in str(refused.value)
