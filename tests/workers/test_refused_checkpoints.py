"""Checkpoints that are damaged, carry code, or have numbers that are not finite are refused in one line, and nothing of them runs."""

import argparse
import pickle
import zipfile

import numpy
import pytest
import torch
from checkpoint_cases import assert_read, family, trained
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from workers.errors import ConfigError, SecateurError
from workers.export import save_model
from workers.model_files import limits_of
from workers.models import checkpoint_files


def test_a_file_without_weights_is_named(tmp_path):
    for content in ({"epoch": 3}, [torch.ones(3)], {}):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(ConfigError, match=r"expected a dict of tensors"):
            family(tmp_path / "w.pth").pretrained_state()


class Trap:
    def __init__(self, call):
        self.call = call

    def __reduce__(self):
        return (self.call, ("foreign code ran",))


class Custom:
    pass


@pytest.mark.parametrize("wrap", [lambda trap: trap, lambda trap: argparse.Namespace(hidden=trap), lambda trap: [{"deep": trap}]])
@pytest.mark.parametrize("zipped", [True, False])
def test_only_allowed_types_are_loaded_and_no_code_runs(tmp_path, wrap, zipped):
    content = {"state_dict": trained().state_dict(), "args": wrap(Trap(pytest.fail))}
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    named = r"_pytest\.outcomes\." if zipped else ""
    with pytest.raises(ConfigError, match=f"{named}.*could run code"):
        family(tmp_path / "w.pt").pretrained_state()


@pytest.mark.parametrize("content", [numpy.arange(3), argparse.ArgumentParser, Custom(), numpy.dtype])
def test_nothing_of_numpy_and_argparse_but_numbers_and_namespaces_is_read(tmp_path, content):
    torch.save({"state_dict": trained().state_dict(), "args": content}, tmp_path / "w.pt")
    if content is numpy.dtype:  # a name by itself: read, and nothing done with it
        assert_read(tmp_path / "w.pt", trained())
        return
    with pytest.raises(ConfigError, match="could run code"):
        family(tmp_path / "w.pt").pretrained_state()


def test_a_compressed_file_is_refused_before_it_is_unpacked(tmp_path):
    torch.save(trained().state_dict(), tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as stored, zipfile.ZipFile(tmp_path / "z.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for part in stored.infolist():
            packed.writestr(part.filename, stored.read(part) + bytes(10**6 if part.filename.endswith("data.pkl") else 0))
    with pytest.raises(ConfigError, match="not compressed"):
        family(tmp_path / "z.pth").pretrained_state()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_with_any_bytes_changed_is_loaded_or_refused_in_one_line(tmp_path, zipped):
    """A part of the file at a time; the first and the last bytes, which say where everything is, one by one."""
    torch.save({"state_dict": trained().state_dict(), "epoch": 3}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    content, refused = (tmp_path / "w.pth").read_bytes(), 0
    places = [*range(0, 60, 2), *range(60, len(content) - 40, len(content) // 40), *range(len(content) - 40, len(content), 2)]
    for place in places:
        (tmp_path / "x.pth").write_bytes(content[:place] + bytes([content[place] ^ 0x5B]) + content[place + 1 :])
        try:
            checkpoint_files.read(tmp_path / "x.pth")
        except ConfigError as error:
            assert "\n" not in str(error)
            refused += 1
    assert 10 < refused < len(places)


def test_types_are_allowed_only_here_and_their_code_does_not_run(tmp_path, monkeypatch):
    """The namespace's own methods would fail; and torch by itself still refuses the file afterwards."""
    path = tmp_path / "w.pt"
    torch.save({"state_dict": trained().state_dict(), "args": argparse.Namespace(lr=1)}, path)
    monkeypatch.setattr(argparse.Namespace, "__init__", lambda *_, **__: pytest.fail("it ran"))
    monkeypatch.setattr(argparse.Namespace, "__setstate__", lambda *_: pytest.fail("it ran"), raising=False)
    assert_read(path, trained())
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def spoilt():
    state = trained().state_dict()
    state["blocks.1.mlp.fc1.weight"][3, :2] = torch.nan
    state["blocks.1.mlp.fc1.weight"][5, 5] = -torch.inf
    state["norm.bias"][7] = torch.inf
    return state


NAMED = r"expected finite numbers in .*w\.\w+, got blocks.1.mlp.fc1.weight \(2 NaN and 1 infinite of 4096\), norm.bias \(1 infinite of 32\)"


def test_numbers_that_are_not_finite_are_counted_by_tensor(tmp_path):
    torch.save(spoilt(), tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=NAMED):
        family(tmp_path / "w.pth").pretrained_state()


def test_buffers_may_be_infinite_but_neither_statistics_nor_frozen_weights():
    model = nn.Sequential(nn.BatchNorm2d(2), FrozenBatchNorm2d(2), nn.Linear(2, 2))
    model.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
    assert limits_of(model) - {"0.num_batches_tracked"} == {"mask"}


def test_a_model_whose_numbers_are_not_finite_is_not_stored(tmp_path):
    with pytest.raises(SecateurError, match=r"expected finite numbers, got NaN or infinity in blocks.1.mlp.fc1.weight"):
        save_model(tmp_path / "w.safetensors", family(), spoilt(), {"blocks.1.mlp.fc1": torch.rand(128, 32) < 2})
    assert not list(tmp_path.iterdir())


def test_statistics_of_norms_that_are_not_finite_are_named_too(tmp_path):
    made = family(name="resnet18", arguments={"num_classes": 10})
    state = made.build().state_dict()
    state["layer4.1.bn2.running_var"][0] = torch.nan
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"layer4.1.bn2.running_var \(1 NaN of 512\)"):
        family(tmp_path / "w.pth", "resnet18", {"num_classes": 10}).pretrained_state()
