"""Model files whose content somebody changed, with digests that fit or not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workers.files import read_metadata, read_tensors, write_tensors
from workers.model_files import spec_text


def unchanged(entries: Any) -> Any:
    return entries


def rewritten(path: Path, tensors: Callable[[dict], dict] = unchanged, spec: Callable[[dict], dict] = unchanged) -> Path:
    """Changes the tensors and the spec of a file, and makes its digests fit."""
    changed = {name: tensor.clone() for name, tensor in tensors(read_tensors(path)).items()}
    entries = spec({key: value for key, value in spec_of(path).items() if key not in ("sha256", "tensors")})
    write_tensors(path, changed, {"secateur": spec_text(entries, changed)})
    return path


def spec_of(path: Path) -> dict[str, Any]:
    return json.loads(read_metadata(path)["secateur"])


def inside(**changes: Any) -> Callable[[dict], dict]:
    """Changes the settings of the family."""
    return lambda spec: spec | {"settings": spec["settings"] | changes}
