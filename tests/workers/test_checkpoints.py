"""Checkpoints in the formats of other libraries, written by the library itself if installed, are loaded bit by bit or refused."""

import argparse
import os
import subprocess
import sys

import numpy
import pytest
import torch
from checkpoint_cases import assert_read, family, trained
from torch import nn

from workers.errors import ConfigError
from workers.models import checkpoints


class Wrapped(nn.Module):
    """A training's module around the model."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def saver(model, folder, **more):
    from timm.utils import CheckpointSaver

    args = argparse.Namespace(model="vit_tiny_patch16_224", lr=0.1, std=(0.5, 0.5), mean=numpy.float32(0.5), workers=numpy.int64(3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 1, 32, 32)).sum().backward()
    optimizer.step()
    return CheckpointSaver(model, optimizer, args=args, checkpoint_dir=str(folder), recovery_dir=str(folder), **more)


def test_files_of_timms_own_training_with_their_command_line_and_metric(tmp_path):
    model = trained()
    saver(model, tmp_path).save_checkpoint(3, metric=numpy.float64(71.5))
    assert_read(tmp_path / "model_best.pth.tar", model)
    (tmp_path / "renamed.pth").write_bytes((tmp_path / "last.pth.tar").read_bytes())
    assert_read(tmp_path / "renamed.pth", model)


def test_of_timms_own_training_the_averaged_weights_are_read(tmp_path):
    from timm.utils import ModelEmaV3

    model = trained()
    average = ModelEmaV3(trained(1))
    saver(model, tmp_path, model_ema=average).save_checkpoint(3, metric=numpy.float64(71.5))
    assert_read(tmp_path / "last.pth.tar", average.module, ["loaded state_dict_ema from", "left out: state_dict"])


@pytest.mark.parametrize("module", ["numpy._core.multiarray", "numpy.core.multiarray"])
def test_numbers_of_both_versions_of_numpy_are_passed_over(tmp_path, module):
    model = trained()
    torch.save({"state_dict": model.state_dict(), "metric": numpy.float64(3)}, tmp_path / "w.pth")
    raw = (tmp_path / "w.pth").read_bytes()
    assert b"numpy._core.multiarray" in raw
    if module == "numpy.core.multiarray":  # NumPy 1 says so; written in the older format of torch, which is a plain pickle
        torch.save({"state_dict": model.state_dict(), "metric": numpy.float64(3)}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
        raw = (tmp_path / "w.pth").read_bytes()
        (tmp_path / "w.pth").write_bytes(raw.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert_read(tmp_path / "w.pth", model)


def test_an_averaged_model_of_torch(tmp_path):
    from torch.optim.swa_utils import AveragedModel

    average = AveragedModel(trained(), use_buffers=True)
    average.update_parameters(trained(1))
    average.update_parameters(trained(2))
    torch.save(average.state_dict(), tmp_path / "w.pt")
    assert_read(tmp_path / "w.pt", average.module, ["loaded module.* from", "left out: n_averaged (1)"])


def test_a_compiled_model_alone_and_inside_wrappers(tmp_path):
    model = trained()
    torch.save(torch.compile(model).state_dict(), tmp_path / "w.pt")
    assert_read(tmp_path / "w.pt", model)
    torch.save({"model": Wrapped(module=torch.compile(model)).state_dict()}, tmp_path / "w.pt")
    assert_read(tmp_path / "w.pt", model)
    before, model.blocks[1] = model.state_dict(), torch.compile(model.blocks[1])
    assert set(model.state_dict()) != set(before), "compiled in part: names change in their middle"
    torch.save(model.state_dict(), tmp_path / "w.pt")
    assert_read(tmp_path / "w.pt", trained())


def test_a_lightning_checkpoint_with_other_tensors_beside_the_model(tmp_path):
    """As Lightning documents it: https://lightning.ai/docs/pytorch/stable/common/checkpointing_basic.html"""
    model, teacher = trained(), nn.Linear(3, 4)
    module = Wrapped(model=model, loss_fn=nn.CrossEntropyLoss(weight=torch.rand(10)), teacher=teacher)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    content = {
        "epoch": 4,
        "global_step": 400,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": module.state_dict(),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 5}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val'}": {"best_model_score": torch.tensor(0.3), "best_model_path": "w.ckpt"}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.1},
    }
    torch.save(content, tmp_path / "w.ckpt")
    assert_read(tmp_path / "w.ckpt", model, ["loaded state_dict: model.* from", "loss_fn.* (1)", "teacher.* (2)"])


@pytest.mark.parametrize("key", ["model_state_dict", "state_dict_ema", "net", "my_weights"])
def test_weights_under_any_key_of_a_dict(tmp_path, key):
    model = trained()
    torch.save({"epoch": 3, key: model.state_dict(), "loss": torch.tensor(0.3)}, tmp_path / "w.pth")
    assert_read(tmp_path / "w.pth", model)


DEEPSPEED = """
import sys, warnings
warnings.filterwarnings("ignore")
import torch, deepspeed
sys.path[:0] = {paths!r}
from checkpoint_cases import trained
from workers.files import write_tensors
deepspeed.init_distributed("gloo", init_method="file://{folder}/meeting", rank=0, world_size=1, auto_mpi_discovery=False)
model = trained()
optimizer = {{"type": "AdamW", "params": {{"torch_adam": True}}}}
config = {{"train_batch_size": 1, "zero_optimization": {{"stage": {stage}}}, "optimizer": optimizer}}
engine, *_ = deepspeed.initialize(model=model, model_parameters=list(model.parameters()), config=config)
engine.backward(engine(torch.rand(1, 1, 32, 32)).square().sum())
engine.step()
engine.save_checkpoint("{folder}/ds", tag="last", client_state={{"epoch": 3}})
with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled={stage} == 3):
    write_tensors(__import__("pathlib").Path("{folder}/truth.safetensors"), engine.module.state_dict())
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
if {stage}:
    torch.save(get_fp32_state_dict_from_zero_checkpoint("{folder}/ds", tag="last"), "{folder}/gathered.pt")
"""

FSDP = """
import sys
import torch, torch.distributed as dist
sys.path[:0] = {paths!r}
from checkpoint_cases import trained
from workers.files import write_tensors
dist.init_process_group("gloo", init_method="file://{folder}/meeting", rank=0, world_size=1)
model = trained()
write_tensors(__import__("pathlib").Path("{folder}/truth.safetensors"), model.state_dict())
from torch.distributed.fsdp import fully_shard
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed import checkpoint
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
torch.save(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)), "{folder}/full.pt")
checkpoint.save({{"app": {{"model": model.state_dict(), "step": 3}}}}, checkpoint_id="{folder}/parts")
dcp_to_torch_save("{folder}/parts", "{folder}/merged.pt")
"""


def written_by(script, folder, **values):
    from pathlib import Path

    from workers.files import read_tensors

    here = Path(__file__).parent
    text = script.format(paths=[str(here.parents[1]), str(here)], folder=folder, **values)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=600, env=os.environ | {"LOCAL_RANK": "0"})
    assert done.returncode == 0, done.stderr[-3000:]
    model = family().build()
    model.load_state_dict(read_tensors(folder / "truth.safetensors"))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_checkpoint_of_deepspeed(tmp_path, stage):
    """With stage 3 a file of a rank holds no weights, and the error says how to gather them."""
    model = written_by(DEEPSPEED, tmp_path, stage=stage)
    if stage < 3:
        assert_read(tmp_path / "ds/last/mp_rank_00_model_states.pt", model)
    else:
        with pytest.raises(ConfigError, match=r"over ranks, .*zero_to_fp32.py"):
            family(tmp_path / "ds/last/zero_pp_rank_0_mp_rank_00_model_states.pt").pretrained_state()
    if stage:
        assert_read(tmp_path / "gathered.pt", model)
    with pytest.raises(ConfigError, match=r"model.checkpoint: .*folder.*zero_to_fp32.py"):
        family(tmp_path / "ds").check()


def test_consolidated_files_of_fsdp(tmp_path):
    model = written_by(FSDP, tmp_path)
    assert_read(tmp_path / "full.pt", model)
    assert_read(tmp_path / "merged.pt", model)


def test_two_models_of_one_architecture_are_refused_by_name(tmp_path):
    student, teacher = trained(), trained(1)
    torch.save({"state_dict": Wrapped(student=student, teacher=teacher).state_dict()}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"2 that fit equally: state_dict: student\.\* and state_dict: teacher\.\*; save"):
        family(tmp_path / "w.pth").pretrained_state()
    torch.save(student.state_dict() | Wrapped(teacher=teacher).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"2 that fit equally: \* and teacher\.\*; save"):
        family(tmp_path / "w.pth").pretrained_state()
    torch.save({"student": student.state_dict(), "teacher": teacher.state_dict()}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"2 that fit equally: student and teacher; save"):
        family(tmp_path / "w.pth").pretrained_state()


def test_one_model_under_two_names_is_not_ambiguous(tmp_path):
    model = trained()
    torch.save({"state_dict": Wrapped(net=model, same=model).state_dict()}, tmp_path / "w.pth")
    assert_read(tmp_path / "w.pth", model, ["state_dict: same.*"])


def test_a_part_of_the_model_that_looks_like_it_does_not_stand_in_the_way():
    """A model whose inner names repeat its outer ones."""
    inner = nn.Sequential(nn.Linear(3, 3))
    model = nn.Sequential(inner[0], inner)
    state = {
        name: torch.rand(3, 3) if name.endswith("weight") else torch.rand(3) for name in ("0.weight", "0.bias", "1.0.weight", "1.0.bias")
    }
    fit = checkpoints.checkpoint_files.find(dict(state), model.state_dict(), dict, "w")
    assert fit.complete and not fit.unexpected and fit.state == state


def test_a_wrapped_checkpoint_that_does_not_fit_is_reported_by_the_models_own_names(tmp_path):
    state = {f"module.{name}": tensor for name, tensor in trained().state_dict().items() if name != "norm.bias"}
    torch.save({"state_dict": state | {"n_averaged": torch.tensor(1)}}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"does not fit the model: missing: norm.bias; check"):
        family(tmp_path / "w.pth").pretrained_state()
    state = {f"module.{name}": tensor for name, tensor in trained().state_dict().items()} | {"module.extra.weight": torch.ones(2)}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"does not fit the model: unexpected: extra.weight; check"):
        family(tmp_path / "w.pth").pretrained_state()
