"""Whole runs on image folders that change between them: what they report is of the images that lie there now."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from warm import Ended, orchestrate

SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}
TRAINED = [
    "model=timm",
    "model.name=vit_tiny_patch16_224",
    "+model.arguments={" + ",".join(f"{name}:{value}" for name, value in SMALL.items()) + "}",
    "recovery@training=digits_scratch",
    "training.epochs=12",
    "training.batch_size=8",
]
PETS = ["data=imagefolder", "data.root=pets", "data.image_size=16", "data.decoders=0", "data.shards=2", "data.calibration_batches=8"]
SETTINGS = [*PETS, "data.calibration_batch_size=4", "pruner.block_size=16", "recovery=none", "compare=false"]


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``pets`` of two classes, dark and bright, and a model that tells them apart: cats are output 0, dogs output 1."""
    folder, draw = tmp_path_factory.mktemp("pets"), np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 8)):
        for name, grey in (("cat", 60), ("dog", 190)):
            (folder / "pets" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = (grey + draw.normal(0, 20, (20, 24, 3))).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / "pets" / split / name / f"{number}.png")
    report = run(folder, "name=trained", *TRAINED)
    assert top1(report) == 1.0
    (model,) = folder.glob("runs/trained-*/model.safetensors")
    model.rename(folder / "dense.safetensors")
    return folder


def started(folder: Path, *overrides: str) -> Ended:
    return orchestrate(*SETTINGS, "cluster=local", "cluster.threads=1", *overrides, cwd=folder)


def run(folder: Path, *overrides: str) -> dict:
    ended = started(folder, *overrides)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    path = max(folder.glob("runs/*/report.json"), key=lambda path: path.stat().st_mtime_ns)
    return json.loads(path.read_text()) | {"said": ended.stdout + ended.stderr}


def imported(folder: Path, *overrides: str) -> dict:
    return run(folder, "model=exported", "model.checkpoint=dense.safetensors", "recovery@training=none", *overrides)


def top1(report: dict) -> float:
    return report["stages"][0]["metrics"]["top1"]


def computed(folder: Path) -> int:
    """How many evaluations were computed so far, by all runs."""
    lines = [json.loads(line) for path in folder.glob("runs/*/tasks.jsonl") for line in path.read_text().splitlines()]
    return sum(line["verb"] == "evaluate" and line["computed"] for line in lines)


def test_debris_beside_classes_changes_no_result_and_a_class_without_images_no_result_unseen(pets: Path) -> None:
    before = imported(pets)
    assert top1(before) == 1.0 and "3 classes and the data have 2" in before["warnings"][0] and "(cat is 0, dog is 1)" in before["said"]
    done = computed(pets)
    for split in ("train", "val"):
        for name in ("__MACOSX", "empty", ".ipynb_checkpoints"):
            (pets / "pets" / split / name).mkdir()
    assert top1(imported(pets)) == 1.0 and computed(pets) == done, "the same data: read from the store"

    (pets / "pets" / "train" / "ape").mkdir()
    (pets / "pets" / "train" / "ape" / "notes.txt").write_text("a class that comes first, of which there are no images")
    shifted = imported(pets)
    assert top1(shifted) == 0.0 and computed(pets) > done, "cats are now number 1, which is the model's number of dogs"
    for text in (" ".join(shifted["warnings"]), shifted["said"]):
        assert re.search(r"1 of 3 classes [\w ]*training images \(ape\)", text)
    assert top1(imported(pets, "data.class_map={ape:2,cat:0,dog:1}")) == 1.0

    (pets / "pets" / "train" / "ape" / "notes.txt").unlink()
    done = computed(pets)
    assert top1(imported(pets)) == 1.0 and computed(pets) == done, "the first data again"


def test_files_that_cannot_be_read_are_one_line_before_the_run_or_left_out_and_told(pets: Path) -> None:
    broken = [pets / "pets" / "train" / "cat" / name for name in ("empty.jpg", "page.png")]
    for path in broken:
        path.write_text("")
    (pets / "pets" / "train" / "cat" / "link.png").symlink_to("nowhere")
    ended = started(pets, "model=exported", "model.checkpoint=dense.safetensors", "recovery@training=none")
    assert ended.returncode == 2 and len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    for word in ("got 3 that cannot", "empty.jpg", "page.png", "link.png: a link to nothing", "data.broken=skip"):
        assert word in ended.stderr
    report = imported(pets, "data.broken=skip")
    assert top1(report) == 1.0
    for text in (" ".join(report["warnings"]), report["said"]):
        assert "left out 3 files that cannot be read" in text
    for path in (*broken, pets / "pets" / "train" / "cat" / "link.png"):
        path.unlink()


def test_numbers_that_the_model_does_not_have_are_refused(pets: Path) -> None:
    ended = started(pets, "model=exported", "model.checkpoint=dense.safetensors", "recovery@training=none", "data.class_map={cat:0,dog:3}")
    assert ended.returncode == 2 and "data.class_map: expected numbers below 3" in ended.stderr
