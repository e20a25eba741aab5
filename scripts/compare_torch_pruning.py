"""torch-pruning's own importances on the groups of a CNN, one-shot, beside the runs of scripts/compare_saliencies.sh.

    python scripts/compare_torch_pruning.py +experiment=NAME [overrides] --seeds 0 1 2 --removed 0.25 0.5 0.75 [--of macs]

Same dense models (those that a run of the experiment left in its store), same groups, same calibration batches, same choice down the
ranking, same test images: only the scores are torch-pruning's. Prints accuracy (agreement with the dense model on small test sets).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, pstdev

import torch
import torch_pruning as tp
from torch import Tensor, nn

from orchestrator.choose import choose_for, question
from orchestrator.config import Experiment, experiment_of
from workers.calibrate import derived_seed
from workers.evaluation import agreement, classification
from workers.export import load_family, load_pruned
from workers.losses import calibration_loss, forward
from workers.models.base import ModelFamily
from workers.models.shrunk import shrunk
from workers.pruners.unit_baselines import UnitRandom
from workers.pruners.units import Of, UnitTarget
from workers.structure import Group, find_groups, take

IMPORTANCES = {
    "GroupMagnitudeImportance": lambda: tp.importance.GroupMagnitudeImportance(),
    "GroupTaylorImportance": lambda: tp.importance.GroupTaylorImportance(),
    "GroupHessianImportance": lambda: tp.importance.GroupHessianImportance(),
}


def dense_file(experiment: Experiment) -> Path:
    """The dense model of a finished run of the same experiment and seed."""
    for path in sorted(Path(experiment.output).glob(f"{experiment.name}-*/report.json")):
        told = json.loads(path.read_text(encoding="utf-8"))["experiment"]
        if told["seed"] == experiment.seed:
            lines = (json.loads(line) for line in (path.parent / "tasks.jsonl").read_text(encoding="utf-8").splitlines())
            verbs = {line["verb"]: line["fingerprint"] for line in lines}
            name = verbs["recover" if told["training"] else "import"]
            return next((Path(experiment.output) / "store").glob(f"*/{name[:2]}/{name[2:18]}/model.safetensors"))
    raise SystemExit(f"{experiment.output}: no finished run of {experiment.name} with seed {experiment.seed}; run the experiment first")


def scores(name: str, model: nn.Module, groups: list[Group], experiment: Experiment) -> Tensor:
    """torch-pruning's importance of every unit, all groups one after another: float64 (S,)."""
    importance = IMPORTANCES[name]()
    model.requires_grad_(True).zero_grad()
    if name == "GroupHessianImportance":
        importance.zero_grad()
    batches = () if name == "GroupMagnitudeImportance" else experiment.data.calibration(0, 1)
    for number, batch in enumerate(batches, 1):
        loss = calibration_loss(
            experiment.loss, forward(experiment.loss, model, batch.images_NCHW), batch.labels_N, derived_seed(0, number)
        )
        if name == "GroupHessianImportance":  # it wants a gradient per accumulation, and keeps the last one only
            model.zero_grad()
            loss.backward()
            importance.accumulate_grad(model)
        else:
            loss.backward()
    graph = tp.DependencyGraph().build_dependency(model, torch.zeros(1, *experiment.data.input_shape), verbose=False)
    found = []
    for group in groups:
        root = model.get_submodule(group.name)
        removing = tp.prune_linear_out_channels if isinstance(root, nn.Linear) else tp.prune_conv_out_channels
        found.append(importance(graph.get_pruning_group(root, removing, list(range(group.units)))).detach().double())
    return torch.cat(found)


@torch.inference_mode()
def judged(model: nn.Module, dense: nn.Module, experiment: Experiment) -> float:
    """Top-1, or agreement with the dense model where there are fewer than 100 test images."""
    parts = [(model(b.images_NCHW), dense(b.images_NCHW), b.labels_N) for b in experiment.data.evaluation("test", 0, 1)]
    outputs, before, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    return classification(outputs, labels)["top1"] if len(labels) >= 100 else agreement(outputs, before, True)["agreement"]


def without(family: ModelFamily, dense: nn.Module, groups: list[Group], kept: dict[str, Tensor]) -> nn.Module:
    state = dense.state_dict()
    smaller = take(state, groups, kept)
    model = shrunk(family, state, smaller).build()
    model.load_state_dict(smaller)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--removed", nargs="+", type=float, default=[0.25, 0.5, 0.75])
    parser.add_argument("--of", default="macs")
    options = parser.parse_args()
    table: dict[str, dict[float, list[float]]] = {name: {removed: [] for removed in options.removed} for name in IMPORTANCES}
    for seed in options.seeds:
        experiment = experiment_of([*options.overrides, f"seed={seed}"])
        path = dense_file(experiment)
        family, dense = load_family(path), load_pruned(path)
        groups = find_groups(family, experiment.data.input_shape, streams=False)
        for name, row in table.items():
            order_S = scores(name, load_pruned(path), groups, experiment).argsort(stable=True).tolist()
            for removed, found in row.items():
                pruner = UnitRandom(UnitTarget(removed, Of(options.of), 1, 0.0), streams=False, seed=0)  # for its target alone
                kept = choose_for(question(pruner, family, experiment.data.input_shape), order_S, [])
                found.append(judged(without(family, dense, groups, kept), dense, experiment))
    print("| torch-pruning " + tp.__version__ + " | " + " | ".join(f"{removed:.0%} of {options.of}" for removed in options.removed) + " |")
    print("|---" * (len(options.removed) + 1) + "|")
    for name, row in table.items():
        cells = [f"{100 * mean(found):.1f} ± {100 * pstdev(found):.1f} ({len(found)})" for found in row.values()]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
