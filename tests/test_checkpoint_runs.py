"""Runs from checkpoints as trainings leave them: the same result as from plain weights, and a word of what was left out."""

from pathlib import Path

import torch
from run_cases import arguments, model_bytes, report_of, run
from safetensors.torch import load_file
from tiny import tiny_overrides
from warm import orchestrate


def plain_state(folder: Path) -> dict[str, torch.Tensor]:
    tiny_overrides(folder)
    return load_file(folder / "tiny.safetensors")


def test_a_wrapped_checkpoint_gives_the_same_model_and_says_what_was_left_out(tmp_path: Path) -> None:
    run(tmp_path / "plain", "pruner=magnitude")
    state = plain_state(tmp_path / "plain")
    wrapped = tmp_path / "training.ckpt"
    torch.save({"state_dict": {f"model.{name}": tensor for name, tensor in state.items()} | {"loss_fn.weight": torch.ones(10)}}, wrapped)
    said = run(tmp_path / "wrapped", "pruner=magnitude", f"model.checkpoint={wrapped}")
    assert model_bytes(tmp_path / "wrapped") == model_bytes(tmp_path / "plain")
    words = "loaded state_dict: model.* from"
    assert words in said and any(
        words in warning and "left out: loss_fn.* (1)" in warning for warning in report_of(tmp_path / "wrapped")["warnings"]
    )


def test_a_checkpoint_with_a_nan_ends_the_run_at_once_in_one_line(tmp_path: Path) -> None:
    state = plain_state(tmp_path)
    state["blocks.0.attn.qkv.weight"][0, 0] = torch.nan
    torch.save(state, tmp_path / "spoilt.pth")
    ended = orchestrate(*arguments(tmp_path, f"model.checkpoint={tmp_path / 'spoilt.pth'}"), cwd=tmp_path)
    assert ended.returncode == 2
    assert "blocks.0.attn.qkv.weight (1 NaN of 3072)" in ended.stderr and "Traceback" not in ended.stdout + ended.stderr
