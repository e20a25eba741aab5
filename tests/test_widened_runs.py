"""A whole run of a widened model, from the command line: trained wide, pruned back, and left as a file that loads anywhere."""

from pathlib import Path

import pytest
import torch
from run_cases import SHAPE, directory, macs, model_bytes, report_of, run, stored

from workers.export import load_family, load_pruned
from workers.files import read_tensors
from workers.models.structures.find import find_groups
from workers.models.structures.groups import mask_
from workers.models.widened import WidenedModel

TINY = [
    "model=digits_convnext_wide",
    "model.settings.arguments.depths=[1,1,1,1]",
    "model.settings.arguments.dims=[4,8,8,12]",
    "model.settings.arguments.patch_size=1",
    "+model.settings.arguments.ls_init_value=1.0",  # else a few steps leave blocks that hardly add anything
    "model.input_shape=[1,16,16]",
    "recovery@training=convnext_scratch",
    "training.epochs=1",
    "training.batch_size=32",
    "training.ranks=1",
    "training.warmup_epochs=0.0",
    "data.train_size=128",
    "pruner=sosp_h",
    "pruner.target.removed=0.3",
    "pruner.target.of=macs",
]


@pytest.fixture(scope="module")
def widened(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("widened")
    run(folder, *TINY)
    return folder


def test_the_dense_model_is_wide_where_asked_and_trained(widened: Path) -> None:
    """MLPs of a ConvNeXt are 4 times as wide as their stage; those of the first and last stage twice that."""
    (start,), (trained,) = stored(widened, "import"), stored(widened, "train")
    family = load_family(trained / "model.safetensors")
    assert isinstance(family, WidenedModel)
    units = {group.name: group.units for group in find_groups(family, SHAPE, streams=False)}
    assert [count for name, count in units.items() if "mlp" in name] == [2 * 4 * 4, 4 * 8, 4 * 8, 2 * 4 * 12]
    before, after = (dict(load_pruned(path / "model.safetensors").named_parameters()) for path in (start, trained))
    assert all(not torch.equal(before[name], after[name]) for name in before if name.endswith("fc1.weight"))


def test_it_is_pruned_back_to_what_the_wide_one_computes_with_units_silenced(widened: Path) -> None:
    (trained,), (chosen,), said = stored(widened, "train"), stored(widened, "choose"), report_of(widened)
    whole, small = load_pruned(trained / "model.safetensors"), load_pruned(directory(widened) / "model.safetensors")
    assert said["dense_size"]["macs"] == macs(whole) and said["final_size"]["macs"] == macs(small)
    assert 0.6 * macs(whole) < macs(small) <= 0.7 * macs(whole)
    kept = {name: stays.bool() for name, stays in read_tensors(chosen / "kept.safetensors").items()}
    mask_(dict(whole.named_parameters()), find_groups(load_family(trained / "model.safetensors"), SHAPE, streams=False), kept)
    images = torch.randn(4, *SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(small(images), whole(images), rtol=1e-4, atol=1e-5)


def test_the_same_run_leaves_the_same_bytes(widened: Path, tmp_path: Path) -> None:
    """Initial weights of what is wider are drawn, by the seed."""
    run(tmp_path, *TINY)
    assert model_bytes(tmp_path) == model_bytes(widened)
