"""A reader of W&B's offline files, written from their format (LevelDB's log, a header of 7 bytes), to see what really was recorded."""

import json
import struct
import zlib
from pathlib import Path

from wandb.proto import wandb_internal_pb2 as pb

BLOCK = 32768
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> list[pb.Record]:
    """Every record of a ``.wandb`` file, in order; checksums are verified."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    found, partial, at = [], b"", 7
    while at < len(data):
        room = BLOCK - at % BLOCK
        if room < 7:  # no header fits: the rest of the block is padding
            at += room
            continue
        checksum, length, kind = struct.unpack("<IHB", data[at : at + 7])
        body = data[at + 7 : at + 7 + length]
        assert zlib.crc32(bytes([kind]) + body) == checksum, "damaged record"
        partial = body if kind in (FULL, FIRST) else partial + body
        if kind in (FULL, LAST):
            record = pb.Record()
            record.ParseFromString(partial)
            found.append(record)
        at += 7 + length
    return found


def the_file(directory: Path) -> Path:
    """The only offline file below ``directory``."""
    (path,) = directory.glob("wandb/offline-run-*/*.wandb")
    return path


def config(found: list[pb.Record]) -> dict:
    items = [item for record in found for item in [*record.run.config.update, *record.config.update]]
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def history(found: list[pb.Record]) -> list[dict]:
    rows = [record.history.item for record in found if record.HasField("history")]
    return [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row} for row in rows]


def summary(found: list[pb.Record]) -> dict:
    items = [item for record in found for item in record.summary.update]
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def metrics(found: list[pb.Record]) -> dict[str, str]:
    """Name or pattern of each defined metric -> its x axis."""
    defined = [record.metric for record in found if record.HasField("metric")]
    return {metric.name or metric.glob_name: metric.step_metric for metric in defined}


def artifacts(found: list[pb.Record]) -> dict[str, pb.ArtifactRecord]:
    """Each artifact by its name."""
    return {record.artifact.name: record.artifact for record in found if record.HasField("artifact")}
