"""Bad input: one clear line, exit status 2, before any worker starts."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_overrides
from warm import Ended, orchestrate


def assert_refused(ended: Ended, *words: str) -> None:
    lines = ended.stderr.strip().splitlines()
    assert ended.returncode == 2, ended.stderr
    assert len(lines) == 1 and lines[0].startswith("error: "), ended.stderr
    for word in words:
        assert word in lines[0], lines[0]
    assert "start workers" not in ended.stdout and "collect" not in ended.stdout


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["pruner.dampning=1e-8"], ["pruner.dampning", "unknown setting", "did you mean dampening"]),
        (["+pruner.colour=red"], ["pruner.colour", "unknown setting", "block_size"]),
        (
            ["+experiment=dinov2_vits", "pruner=halp"],
            ["pruner.target.sparsity", "known are removed", "remove it with '~pruner.target.sparsity'"],
        ),
        (["sede=1"], ["sede", "unknown setting", "did you mean seed"]),
        (["+experiment=dino_vitg_50"], ["there is no such experiment", "did you mean dino_vitg_50pct"]),
        (["pruner=capp"], ["there is no such pruner", "did you mean cap"]),
        (["pruner.target.sparsity=1.5"], ["pruner.target.sparsity", "1.5", "[0, 1)"]),
        (["pruner.block_size=many"], ["pruner.block_size", "many"]),
        (["loss=label"], ["loss", "labels", "'label'"]),
        (["pruner.target.scope=per_layer"], ["pruner.target.per_layer", "patterns"]),
        (["data.calibration_batches=0"], ["data.calibration_batches", "at least 1", "0"]),
        (["data.shards=5000"], ["data.shards", "5000"]),
        (["recovery.zero_stage=4"], ["recovery.zero_stage", "4"]),
        (["model.name=vit_tinny_patch16_224"], ["model.name", "vit_tiny_patch16_224"]),
        (["model.include=['*.atn.qkv']"], ["model.include", "*.atn.qkv", "attn.qkv"]),
        (["model=deit_small", "recovery@training=none"], ["model.checkpoint", "a checkpoint"]),
        (["model.checkpoint=/nowhere/vit.safetensors"], ["model.checkpoint", "/nowhere/vit.safetensors"]),
        (["data=imagefolder", "data.root=/nowhere"], ["data.root", "/nowhere"]),
        (["data=imagefolder"], ["data.root", "a value is needed"]),
        (["data.channels=3"], ["data", "3x32x32"]),
        (["model.arguments.num_classes=5"], ["num_classes", "10", "5"]),
        (["cluster.memory_gb=0.001"], ["cluster.memory_gb", "GB"]),
        (["cluster=local", "cluster.workers=2"], ["cluster.workers", "cluster=ray"]),
        (["latency.runtime=tensorrt"], ["latency.runtime", "onnxruntime", "'tensorrt'"]),
        (["latency.batch_size=0"], ["latency.batch_size", "at least 1"]),
        (["latency.spread=2"], ["latency.spread", "between 0 and 1"]),
        (["pruner=halp", "pruner.target.within=3"], ["pruner.target.within", "0.03"]),
        (["pruner=halp", "pruner.target.of=macs"], ["pruner.target.within", "null", "of=macs"]),
        (["model=timm", "model.name=resnet18", "model.arguments.num_classes=5"], ["+model.arguments.num_classes="]),
        (["pruner=halp", "pruner.target.solver=dynamic"], ["pruner.target.solver", "exact"]),
        (["seed=99999999999999999999999"], ["seed", "at most 2147483647", "99999999999999999999999"]),
        (["seed=-1"], ["seed", "0 or more"]),
        (["latency.batch_size=9999999999"], ["latency.batch_size", "at most 2147483647"]),
        (["model.arguments.depth=9999999999"], ["model.arguments.depth", "at most 2147483647"]),
        (["training.lr=inf"], ["training.lr", "a finite number", "inf"]),
        (["pruner.dampening=nan"], ["pruner.dampening", "a finite number", "nan"]),
        (["data.mean=[inf]"], ["data.mean[0]", "a finite number"]),
        (["cluster.hardware.disk_gbs=inf"], ["cluster.hardware.disk_gbs", "a finite number"]),
        (["+rounds.a.recovery.lr=inf"], ["rounds.a.recovery.lr", "a finite number"]),
        (["pruner.target.scope=per_layer", "+pruner.target.per_layer={fc:nan}"], ["pruner.target.per_layer.fc", "a finite number"]),
        (["name=.."], ["name", "'..'", "folder"]),
        (["name=."], ["name", "'.'"]),
        (["name=a/b"], ["name", "'a/b'"]),
        (["name="], ["name", "''"]),
        (["name='a '"], ["name", "'a '"]),
        (["output="], ["output", "a folder", "output=."]),
        (["output='~/runs'"], ["output", "~", "$HOME"]),
        (["output=/proc/version/runs"], ["output", "/proc/version is a file"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and "=" in value[0] else "",
)
def test_bad_input_is_one_line(overrides: list[str], words: list[str], tmp_path: Path) -> None:
    assert_refused(orchestrate(*overrides, cwd=tmp_path), *words)


def test_a_checkpoint_of_other_shapes_names_the_tensor_and_both_shapes(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    overrides = tiny_overrides(tmp_path)
    path = next(o.partition("=")[2] for o in overrides if o.startswith("model.checkpoint"))
    state = load_file(path)
    state["blocks.0.mlp.fc1.weight"] = torch.zeros(7, 32)
    save_file(state, path)
    assert_refused(orchestrate(*overrides, cwd=tmp_path), "blocks.0.mlp.fc1.weight", "7", "32")


def test_more_workers_than_the_cluster_has_names_what_is_missing(tmp_path: Path) -> None:
    wanted = ["cluster=ray", "cluster.workers=99", "cluster.threads=1", "cluster.memory_gb=2"]
    ended = orchestrate(*tiny_overrides(tmp_path), *wanted, cwd=tmp_path)
    assert_refused(ended, "cluster.workers", "99 CPU needed")


def test_a_cluster_that_does_not_answer_is_named(tmp_path: Path) -> None:
    ended = orchestrate(*tiny_overrides(tmp_path), "cluster=ray", "cluster.address=127.0.0.1:1", cwd=tmp_path)
    assert_refused(ended, "cluster.address", "127.0.0.1:1")


@pytest.mark.parametrize(
    "overrides",
    [
        ["pruner.blok=1"],
        ["model=timm"],
        ["model=deit_small", "recovery@training=none"],
        ["data=imagefolder"],
        ["seed=99999999999999999999999"],
        ["training.lr=inf"],
        ["name=.."],
        ["output="],
        ["pruner.target.pattern=5:4"],
        ["latency.runtime=tensorrt"],
        ["rounds={a:{steps:0}}"],
    ],
    ids=" ".join,
)
def test_what_can_be_told_without_torch_costs_no_import_of_it(overrides: list[str], tmp_path: Path) -> None:
    code = f"import sys; sys.argv = ['x', *{overrides}]\nimport orchestrator.__main__ as m\n"
    code += "try: m.main()\nfinally: print('torch' in sys.modules or 'timm' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=3600)
    assert ended.stdout.strip() == "False" and ended.returncode == 2, ended.stderr


def test_settings_of_every_kind_are_read_without_torch(tmp_path: Path) -> None:
    """So that an error of theirs is told at once."""
    conf = Path(__file__).parent.parent.parent / "conf"
    code = "import sys\nfrom orchestrator.composing import experiment_of\nfrom workers.errors import ConfigError\n"
    code += "for choice in sys.argv[1:]:\n    try: experiment_of([choice])\n    except ConfigError: pass\n"
    code += "    assert 'torch' not in sys.modules, choice\nprint('read')"
    choices = [f"{path.parent.name}={path.stem}" for path in conf.glob("*/*.yaml") if path.parent.name != "experiment"]
    ended = subprocess.run([sys.executable, "-c", code, *choices], cwd=tmp_path, capture_output=True, text=True, timeout=3600)
    assert ended.stdout.strip() == "read", ended.stderr


@pytest.mark.slow
def test_the_largest_seed_runs(tmp_path: Path) -> None:
    ended = orchestrate(*tiny_overrides(tmp_path), "seed=2147483647", "loss=sampled", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
