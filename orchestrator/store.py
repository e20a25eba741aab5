"""Results under fingerprints of everything they depend on: the one mechanism behind resuming, sweeping and re-solving."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from workers.errors import DamagedResult
from workers.files import digest, read_record
from workers.messages import Destination, Record

ROOT = Path(__file__).parent.parent

WORKER = "workers/worker.py"
DETECTOR = "workers/models/detector.py"
STATISTICS = (
    "workers/calibrate.py",
    "workers/layer_inputs.py",
    "workers/products.py",
    "workers/moments.py",
    "workers/pruners/statistics.py",
    "workers/pruners/layout.py",
    "kernels/statistics.py",
    "kernels/outer.py",
    "kernels/linalg.py",
    "kernels/obs/vector.py",
)
STRUCTURE = ("workers/structure.py", "workers/models/structures_*.py", "workers/models/shrunk.py", "workers/models/resize.py")
SALIENCY = ("workers/saliency.py", "workers/pruners/*.py", "kernels/saliency.py")

# The source files whose text is part of a result's identity: editing one makes the results of its verbs be computed again.
CODE = {
    "import": (
        *STRUCTURE,
        "workers/models/widened.py",
        "workers/models/exported.py",
        "workers/export.py",
        "workers/models/timm.py",
        "workers/models/torchvision.py",
        "workers/models/detection.py",
        "workers/models/library.py",
        "workers/models/checkpoints.py",
        "workers/models/bundled.py",
    ),
    "evaluate": (WORKER, "workers/evaluation.py", DETECTOR, "workers/data/*.py"),
    "assess": (WORKER, "workers/evaluation.py", "workers/average_precision.py"),
    "compare": (WORKER, "workers/evaluation.py", "workers/losses.py", DETECTOR, "workers/data/*.py"),
    "collect": (WORKER, *STATISTICS, "workers/losses.py", DETECTOR, "workers/data/*.py"),
    "score": (WORKER, "workers/moments.py", "workers/pruners/*.py", "kernels/*.py", "kernels/obs/*.py"),
    "solve": (WORKER, "workers/moments.py", "workers/pruners/*.py", "kernels/*.py", "kernels/obs/*.py"),
    "allocate": ("orchestrator/allocate.py", "kernels/select.py"),
    "join": (WORKER, "workers/export.py", "kernels/masks.py"),
    "measure": (
        WORKER,
        *STRUCTURE,
        "workers/saliency.py",
        "workers/losses.py",
        DETECTOR,
        "workers/pruners/*.py",
        "workers/data/*.py",
        "kernels/saliency.py",
    ),
    "rank": (WORKER, *STRUCTURE, *SALIENCY),
    "choose": (
        "orchestrator/choose.py",
        "orchestrator/widths.py",
        "orchestrator/latency_table.py",
        "kernels/knapsack.py",
        "workers/models/*_costs.py",
        *STRUCTURE,
    ),
    "time": ("workers/timing.py", "workers/models/operations.py", "workers/models/resize.py"),
    "quantise": (
        "workers/int8.py",
        "workers/onnx_export.py",
        "workers/evaluation.py",
        "workers/average_precision.py",
        DETECTOR,
        "workers/timing.py",
        "workers/data/*.py",
    ),
    "shrink": (WORKER, "workers/export.py", *STRUCTURE),
    "recover": ("workers/recovery*.py", "workers/losses.py", DETECTOR, "workers/data/*.py"),
}
MODEL = "model.safetensors"


class Store:
    """A directory of results that outlives runs, shared by all runs and workers."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._verified: set[str] = set()

    def destination(self, verb: str, **inputs: Any) -> Destination:
        """Where the result of ``verb`` on ``inputs`` belongs."""
        key = fingerprint(verb, code=_code_version(verb), **inputs)
        return Destination(key, self.root / verb / key[:2] / key[2:18])

    def find(self, to: Destination) -> Record | None:
        """The finished result at ``to``, or None. Raises: DamagedResult.

        Model files are verified here, once per driver; all other files where a worker reads them.
        """
        record = read_record(to.directory)
        if record is None:
            return None
        if record.fingerprint != to.fingerprint:
            raise DamagedResult(to.directory, "its record belongs to other inputs")
        if MODEL in record.files and record.fingerprint not in self._verified:
            if digest(record.path(MODEL)) != record.files[MODEL]:
                raise DamagedResult(to.directory, f"{MODEL} does not match its checksum")
            self._verified.add(record.fingerprint)
        return record

    def discard(self, damaged: DamagedResult) -> None:
        """Forget a result so that it is computed again."""
        if self.root not in damaged.directory.parents:
            raise ValueError(f"{damaged.directory} is not inside the store {self.root}")
        shutil.rmtree(damaged.directory, ignore_errors=True)


def fingerprint(*parts: Any, **inputs: Any) -> str:
    """SHA-256 of any nesting of plain values, enums, paths, dataclasses, records (by their own fingerprint) and destinations."""
    text = json.dumps(_plain([*parts, inputs]), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def settings(component: Any, without: tuple[str, ...] = (), only: tuple[str, ...] | None = None) -> dict[str, Any]:
    """A component's type and those of its fields that matter to a result."""
    fields = {name: value for name, value in asdict(component).items() if name not in without and (only is None or name in only)}
    return {"type": f"{type(component).__module__}.{type(component).__qualname__}", **fields}


def _plain(value: Any) -> Any:
    if isinstance(value, Record | Destination):
        return value.fingerprint
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(settings(value))
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"cannot fingerprint {type(value).__name__}")


@cache
def _code_version(verb: str) -> str:
    total = hashlib.sha256()
    for pattern in CODE[verb]:
        for path in sorted(ROOT.glob(pattern)):
            total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()[:16]
