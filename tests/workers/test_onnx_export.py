"""Models as ONNX: onnxruntime agrees with torch for every smaller model; a file that does not agree is deleted."""

import importlib.util

import pytest
import torch
from data_cases import digits
from onnx_cases import VIT, through_onnxruntime, written
from structure_cases import half

from workers import onnx_export
from workers.errors import ConfigError, SecateurError
from workers.export import load_pruned
from workers.onnx_export import check_packages, export_onnx, first_images

LARGE = {  # the four architectures of the examples, smaller where they can be
    "vit_small_patch14_reg4_dinov2": VIT,
    "convnext_atto": {"in_chans": 1, "num_classes": 10},
    "efficientnet_b0": {"in_chans": 1, "num_classes": 10},
    "resnet18": {"in_chans": 1, "num_classes": 10},
}


def assert_agrees(folder, model, numbers):
    """Also on batches of sizes that the check did not see, of other images."""
    images_NCHW = torch.cat([batch.images_NCHW for batch in digits().evaluation("test", 0, 1)])[100:]
    for size in (1, 3, 100):
        with torch.no_grad():
            expected = load_pruned(model)(images_NCHW[:size])
        actual = through_onnxruntime(folder / "model.onnx", images_NCHW[:size])
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
        assert torch.equal(actual.argmax(1), expected.argmax(1))
    assert 0 <= numbers["max_difference"] <= 1e-5 < numbers["tolerance"] and numbers["images"] == 32


@pytest.fixture
def packages():
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)


@pytest.mark.usefixtures("packages")
def test_a_smaller_and_sparse_model_is_the_same_in_onnxruntime(tmp_path):
    model = written(tmp_path / "model.safetensors")
    numbers = export_onnx(model, tmp_path / "model.onnx", first_images(digits()))
    assert numbers["files"] == ["model.onnx"] and max(block.attn.num_heads for block in load_pruned(model).blocks) < 4
    assert_agrees(tmp_path, model, numbers)


@pytest.mark.slow
@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("keep", [None, half])
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
@pytest.mark.parametrize("name", LARGE)
def test_dense_masked_and_smaller_models_are_the_same_in_onnxruntime(name, sparsity, keep, tmp_path):
    model = written(tmp_path / "model.safetensors", name, LARGE[name], keep, sparsity)
    assert_agrees(tmp_path, model, export_onnx(model, tmp_path / "model.onnx", first_images(digits())))


@pytest.mark.usefixtures("packages")
def test_attention_without_heads_and_weights_beside_the_file(tmp_path, monkeypatch):
    """ONNX knows no products of nothing; weights of more than 2 GB need a second file, as here those of more than 1 kB."""
    monkeypatch.setattr(onnx_export, "ONE_FILE_BYTES", 1000)
    model = written(tmp_path / "model.safetensors", keep=lambda units: torch.zeros(units, dtype=torch.bool))
    assert {block.attn.num_heads for block in load_pruned(model).blocks} == {0}
    numbers = export_onnx(model, tmp_path / "model.onnx", first_images(digits()))
    assert numbers["files"] == ["model.onnx", "model.onnx.data"] and (tmp_path / "model.onnx.data").stat().st_size > 1000
    assert_agrees(tmp_path, model, numbers)


@pytest.mark.usefixtures("packages")
def test_a_file_that_does_not_agree_is_refused_and_not_kept(tmp_path, monkeypatch):
    model, write = written(tmp_path / "model.safetensors", keep=None), onnx_export.write_onnx

    def damaged(module, files, images_NCHW):
        with torch.no_grad():
            module.blocks[1].mlp.fc2.weight[3] += 1e-2
        write(module, files, images_NCHW)

    monkeypatch.setattr(onnx_export, "write_onnx", damaged)
    with pytest.raises(SecateurError, match=r"1e-04 .*onnx=false"):
        export_onnx(model, tmp_path / "model.onnx", first_images(digits()))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_changed_decision_is_refused_however_close_the_outputs_are_and_so_is_nan():
    expected_ND = torch.tensor([[1.0, 1.0 + 1e-6], [0.0, 1.0]])
    with pytest.raises(SecateurError, match="difference of nan"):
        onnx_export._difference(expected_ND, expected_ND * torch.nan, False)
    assert onnx_export._difference(expected_ND, expected_ND.clone(), True) == 0
    with pytest.raises(SecateurError, match="1 changed decisions"):
        onnx_export._difference(expected_ND, expected_ND + torch.tensor([[2e-6, 0.0], [0.0, 0.0]]), True)
    assert onnx_export._difference(expected_ND, expected_ND + torch.tensor([[2e-6, 0.0], [0.0, 0.0]]), False) < 1e-5


def test_missing_packages_are_one_line_with_the_command_that_installs_them(monkeypatch):
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("onnxscript", "onnxruntime") else original("json"))
    expected = r"^onnx: .*\(onnxscript, onnxruntime\); run: pip install onnx onnxscript onnxruntime$"
    with pytest.raises(ConfigError, match=expected):
        check_packages()
