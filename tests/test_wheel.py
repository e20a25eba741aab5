"""The wheel: it carries everything that a run reads, and a run outside the checkout uses nothing else."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("conf", "kernels", "orchestrator", "workers")


def succeed(*command: str | Path, cwd: Path, **variables: str) -> str:
    ended = subprocess.run(command, cwd=cwd, env=os.environ | variables, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of a copy of the sources, so that building leaves nothing in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / "sources" / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, folder / "sources")
    succeed(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, folder / "sources", cwd=folder)
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_has_every_file_of_the_packages(wheel: Path) -> None:
    files = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()}
    files = {file for file in files if "__pycache__" not in file}
    assert files == {name for name in zipfile.ZipFile(wheel).namelist() if not name.startswith("secateur-")}


def test_an_installed_wheel_plans_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    succeed(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", installed, wheel, cwd=tmp_path)
    (tmp_path / "elsewhere").mkdir()
    show = "import orchestrator, workers, kernels, conf; print(*(m.__path__[0] for m in (orchestrator, workers, kernels, conf)), sep='\\n')"
    elsewhere = {"cwd": tmp_path / "elsewhere", "PYTHONPATH": str(installed)}
    assert all(Path(line).parent == installed for line in succeed(sys.executable, "-c", show, **elsewhere).splitlines())
    told = succeed(sys.executable, "-m", "orchestrator", "mode=plan", **elsewhere)
    assert "The run takes about" in told
