"""A run whose passes are bfloat16, beside the same run in float32."""

from pathlib import Path

import torch
from run_cases import directory, run, stored

from workers.export import load_state


def test_a_run_in_bfloat16_shares_no_sums_with_one_in_float32_and_nearly_all_of_its_masks(tmp_path: Path) -> None:
    """Rounding moves the ranking of weights that are about equally important. Weights stay float32."""
    run(tmp_path, "pruner=guided", "name=exact")
    collected, imported = len(stored(tmp_path, "collect")), len(stored(tmp_path, "import"))
    run(tmp_path, "pruner=guided", "precision=bf16")
    assert len(stored(tmp_path, "collect")) == 2 * collected and len(stored(tmp_path, "import")) == imported

    (exact_file,) = (tmp_path / "runs").glob("exact-*/model.safetensors")
    (exact, exact_masks), (rounded, masks) = load_state(exact_file), load_state(directory(tmp_path) / "model.safetensors")
    equal = sum(int((masks[name] == exact_masks[name]).sum()) for name in masks)
    assert 0.95 < equal / sum(mask.numel() for mask in masks.values()) < 1
    assert all(weight.dtype == exact[name].dtype for name, weight in rounded.items())
    kept = torch.cat([rounded[f"{name}.weight"].flatten() for name in masks])
    assert not torch.equal(kept, kept.bfloat16().float())
