"""Write a checkpoint of a timm architecture with seeded random weights, to try a model's plan, time and memory without its weights.

    python scripts/random_checkpoint.py vit_large_patch14_dinov2 vitl.safetensors img_size=70 num_classes=0 [--seed 0]

A run with it says nothing about accuracy.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch
import yaml
from safetensors.torch import save_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architecture")
    parser.add_argument("file", type=Path)
    parser.add_argument("arguments", nargs="*", help="name=value, for timm.create_model")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    arguments = {name: yaml.safe_load(value) for name, _, value in (argument.partition("=") for argument in options.arguments)}
    torch.manual_seed(options.seed)
    model = timm.create_model(options.architecture, pretrained=False, **arguments)
    save_file(model.state_dict(), options.file)
    print(f"{options.file}: {sum(p.numel() for p in model.parameters()):,} random weights")


if __name__ == "__main__":
    main()
