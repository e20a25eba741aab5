"""The lock files hold what pyproject.toml asks for, with hashes. `make lock` writes them."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCKS = {
    "requirements.lock": PROJECT["project"]["dependencies"],
    "requirements-dev.lock": PROJECT["dependency-groups"]["dev"],
}


def locked(name: str) -> dict[str, Requirement]:
    """The entries of a lock file by package; each has to have a hash."""
    entries = re.sub(r" *\\\n *", " ", (ROOT / name).read_text(encoding="utf-8")).splitlines()
    found = {}
    for entry in entries:
        if entry.strip() and not entry.lstrip().startswith("#"):
            requirement, _, hashes = entry.partition(" --hash=")
            assert hashes.startswith("sha256:"), f"{requirement} has no hash"
            found[canonicalize_name(Requirement(requirement).name)] = Requirement(requirement)
    return found


def version(requirement: Requirement) -> str:
    return str(requirement.specifier).removeprefix("==")


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_satisfies_the_requirements(name: str) -> None:
    pins = locked(name)
    for wanted in map(Requirement, LOCKS[name]):
        pin = pins.get(canonicalize_name(wanted.name))
        assert pin is not None and wanted.specifier.contains(version(pin)), f"{wanted}: run `make lock`"


def test_the_lock_files_agree_on_packages_that_both_hold() -> None:
    runtime, developer = (locked(name) for name in LOCKS)
    assert {name: version(pin) for name, pin in developer.items() if name in runtime} == {
        name: version(pin) for name, pin in runtime.items() if name in developer
    }


def test_cuda_packages_are_locked_for_linux_alone() -> None:
    pins = locked("requirements.lock")
    assert {"nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-nccl-cu13", "triton"} <= set(pins)
    for name, pin in pins.items():
        if name.startswith(("nvidia-", "cuda-")):
            assert pin.marker is not None
            assert pin.marker.evaluate({"sys_platform": "linux", "platform_machine": "x86_64"})
            assert not pin.marker.evaluate({"sys_platform": "darwin", "platform_machine": "arm64"})
