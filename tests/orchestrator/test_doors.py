"""Who may join a Ray: the one that a run starts is for this run alone, and a cluster that lets everybody in is refused or warned of."""

import os
import shutil
import stat
import subprocess
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
from orchestrator.cluster.doors import LONGEST, LOOPBACK, closed_doors, ray_environment
from orchestrator.composing import experiment_of
from workers.errors import ConfigError, SecateurError
from workers.training.meeting import free_port

NOBODYS = "203.0.113.7"  # kept for documentation
NAMES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@pytest.fixture(autouse=True)
def without_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in (*NAMES, "RAY_ADDRESS", "RAY_USE_TLS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("ray._private.services.get_node_ip_address", lambda: "127.0.0.1")  # the node's, which Ray uses for 127.0.0.1
    monkeypatch.setenv("HOME", str(tmp_path))
    yield
    monkeypatch.undo()
    with ray_environment({}):  # Ray has read what these tests set: other tests in this process would wait for a Ray with TLS, for ever
        pass


def environment() -> dict[str, str]:
    return {name: os.environ[name] for name in NAMES if name in os.environ}


def test_every_ray_has_a_secret_of_its_own_in_a_folder_that_only_its_owner_enters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of another cluster")
    monkeypatch.setenv("RAY_USE_TLS", "1")  # with certificates of another cluster, too
    before, secrets = environment(), set()
    for _ in range(2):
        with closed_doors() as arguments:
            assert environment().keys() == {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"} and os.environ["RAY_AUTH_MODE"] == "token"
            assert "RAY_USE_TLS" not in os.environ
            file = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
            secrets.add(file.read_text())
            assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
            assert file.parent in Path(arguments["_temp_dir"]).parents
        assert not file.parent.exists() and environment() == before and LOOPBACK not in os.environ and os.environ["RAY_USE_TLS"] == "1"
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
def answering(token: str | None, certificates: grpc.ServerCredentials | None = None) -> Iterator[str]:
    """The address of a server that answers everything, like Ray, to those who show the token (None: to everybody)."""

    def carry_out(request: bytes, context: grpc.ServicerContext) -> bytes:
        if token is not None and dict(context.invocation_metadata()).get("authorization") != f"Bearer {token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return b""

    class All(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(carry_out)

    server = grpc.server(ThreadPoolExecutor(2), handlers=[All()])
    port = server.add_secure_port("0.0.0.0:0", certificates) if certificates else server.add_insecure_port("127.0.0.1:0")
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


def certificates(folder: Path) -> dict[str, str]:
    """Ray's settings of TLS, with a new authority and a certificate of it for 127.0.0.1."""
    folder.mkdir()
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    new, signed = ["-newkey", "rsa:2048", "-nodes"], ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names"]
    for arguments in (
        ["req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority"],
        ["req", *new, "-keyout", "node.key", "-out", "node.csr", "-subj", "/CN=node"],
        ["x509", "-req", "-in", "node.csr", "-out", "node.pem", *signed],
    ):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)
    names = {"SERVER_CERT": "node.pem", "SERVER_KEY": "node.key", "CA_CERT": "ca.pem"}
    return {"RAY_USE_TLS": "1"} | {f"RAY_TLS_{name}": str(folder / file) for name, file in names.items()}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_a_cluster_with_tls_is_joined_with_its_certificates_and_not_without_or_with_others(
    join: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A certificate takes the place of a token, and a cluster may ask for both."""
    ours, others = certificates(tmp_path / "ours"), certificates(tmp_path / "others")
    chain, key, authority = (Path(ours[f"RAY_TLS_{name}"]).read_bytes() for name in ("SERVER_CERT", "SERVER_KEY", "CA_CERT"))
    with answering(None, grpc.ssl_server_credentials([(key, chain)], authority, require_client_auth=True)) as address:
        with pytest.raises(ConfigError, match=r"no Ray cluster answers at .*, or set RAY_USE_TLS=1 if it uses TLS"):
            join(address)
        for name, value in others.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ConfigError, match=r"no Ray cluster answers at .*, or check the certificates, since RAY_USE_TLS is set"):
            join(address)
        for name, value in ours.items():
            monkeypatch.setenv(name, value)
        assert join(address) == ({"RAY_AUTH_MODE": "disabled"}, []), "no warning"
        monkeypatch.setenv("RAY_TLS_CA_CERT", str(tmp_path / "missing"))
        with pytest.raises(ConfigError, match=r"RAY_USE_TLS: expected .* files that can be read, got: .*missing"):
            join(address)
        monkeypatch.setenv("RAY_TLS_CA_CERT", ours["RAY_TLS_CA_CERT"])
        with monkeypatch.context() as node:  # whose address is not in the certificate, so that Ray would wait
            node.setattr("ray._private.services.get_node_ip_address", lambda: "127.0.0.2")
            with pytest.raises(ConfigError, match=r"no Ray cluster answers at '127.0.0.1:.* \(127.0.0.2:.*, or check the certificates"):
                join(address)
    monkeypatch.setenv("RAY_TLS_CA_CERT", ours["RAY_TLS_CA_CERT"])
    with answering("right", grpc.ssl_server_credentials([(key, chain)], authority, require_client_auth=True)) as address:
        with pytest.raises(ConfigError, match=r"expected the token of .*, got None"):
            join(address)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
        assert join(address)[0] == {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "right"}


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
