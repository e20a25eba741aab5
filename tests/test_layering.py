"""The arrows of the architecture: orchestrator -> workers -> kernels -> torch, and one door per dependency."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for package in ("kernels", "workers", "orchestrator") for path in (ROOT / package).rglob("*.py"))
DOORS = {
    "ray": ("orchestrator/cluster/ray.py",),
    "hydra": ("orchestrator/config.py", "orchestrator/__main__.py"),
    "omegaconf": ("orchestrator/config.py", "orchestrator/__main__.py"),
    "wandb": ("orchestrator/track.py",),
    "plotly": ("orchestrator/report",),
    "deepspeed": ("workers/recovery",),
    "safetensors": ("workers/files.py",),
    "scipy": ("workers/models/",),
    "timm": ("workers/models/", "workers/data/"),
    "torchvision": ("workers/models/", "workers/data/"),
    "onnx": ("workers/models/", "workers/onnx_export.py"),
    "onnxruntime": ("workers/onnx_export.py", "workers/int8.py"),
    "onnxscript": ("workers/onnx_export.py",),
    "pycocotools": ("workers/average_precision.py",),
    "ortools": ("orchestrator/joint.py",),
    "pyarrow": ("orchestrator/latency_table.py",),
    "sklearn": ("workers/data/",),
    "numba": ("kernels/",),
    "triton": ("kernels/",),
}
BELOW = {"kernels": {"workers", "orchestrator"}, "workers": {"orchestrator"}, "orchestrator": set()}


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_and_use_the_doors(path: Path) -> None:
    place, used = str(path.relative_to(ROOT)), imports(path)
    assert not used & BELOW[place.split("/")[0]], "an arrow points up"
    for package in used & set(DOORS):
        assert place.startswith(DOORS[package]), f"{package} has its door in {DOORS[package]}"


def test_every_source_file_is_seen() -> None:
    assert len(SOURCES) > 40
