"""A model and data so small that a whole run takes a second, for tests of everything around the numbers."""

from pathlib import Path

TINY_MODEL = {
    "img_size": 16,
    "patch_size": 8,
    "in_chans": 1,
    "num_classes": 10,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
}


def tiny_overrides(folder: Path) -> list[str]:
    """Command line of a run of a 2-block ViT with random weights (a checkpoint in ``folder``) on digits, in this process."""
    import timm
    import torch
    from safetensors.torch import save_file

    checkpoint = folder / "tiny.safetensors"
    if not checkpoint.exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = timm.create_model("vit_tiny_patch16_224", **TINY_MODEL)
        save_file(model.state_dict(), checkpoint)
    arguments = ",".join(f"{name}:{value}" for name, value in TINY_MODEL.items())
    return [
        "name=tiny",
        f"model.arguments={{{arguments}}}",
        f"model.checkpoint={checkpoint}",
        f"output={folder / 'runs'}",
        "data.image_size=16",
        "data.calibration_batches=24",
        "pruner=cap",
        "pruner.block_size=16",
        "pruner.target.sparsity=0.75",
        "recovery=none",
        "cluster=local",
        "cluster.threads=1",
    ]
