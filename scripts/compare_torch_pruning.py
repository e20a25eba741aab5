"""Compare torch-pruning's importances, on the groups of a CNN, with the runs of scripts/compare_saliencies.sh.

    python scripts/compare_torch_pruning.py +experiment=NAME [overrides] --seeds 0 1 2 --removed 0.25 0.5 0.75 [--of macs] [--recover 0.5]

Only the scores are torch-pruning's: as by default, divided by the mean of their group, and without that normalisation. The rest is equal:
the dense models (from the store of a run of the experiment), groups (``pruner.streams``), calibration batches, selection by ranking, test
images and, with ``--recover``, the recovery. Prints accuracy (agreement with the dense model for small test sets). Trained models are kept
in ``<output>/torch_pruning`` and not trained again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import mean, pstdev

import torch
import torch_pruning as tp
from rich.console import Console
from torch import Tensor, nn

from orchestrator.allocation.units import cost_of, select_for_step, unit_problem
from orchestrator.composing import experiment_of
from orchestrator.config import Experiment
from orchestrator.store import MODEL
from workers.evaluation import of_outputs
from workers.export import load_family, load_pruned, load_state, save_model
from workers.files import digest, read_record, write_text
from workers.losses import calibration_loss, forward
from workers.messages import TrainTask
from workers.models.base import ModelFamily, Output
from workers.models.shrunk import shrunk
from workers.models.structures.find import find_groups
from workers.models.structures.groups import Group, take
from workers.numbers import derived_seed
from workers.pruners.unit_baselines import UnitRandom
from workers.pruners.units import Of, UnitTarget
from workers.records import Destination

IMPORTANCES: dict[str, Callable[[], tp.importance.Importance]] = {
    "GroupMagnitude": tp.importance.GroupMagnitudeImportance,
    "GroupMagnitude, as it is": lambda: tp.importance.GroupMagnitudeImportance(normalizer=None),
    "GroupTaylor": tp.importance.GroupTaylorImportance,
    "GroupTaylor, as it is": lambda: tp.importance.GroupTaylorImportance(normalizer=None),
    "GroupHessian": tp.importance.GroupHessianImportance,
    "GroupHessian, as it is": lambda: tp.importance.GroupHessianImportance(normalizer=None),
}


def dense_file(experiment: Experiment) -> Path:
    """Returns the dense model of a finished run of the same experiment and seed."""
    for path in sorted(Path(experiment.output).glob(f"{experiment.name}-*/report.json")):
        settings = json.loads(path.read_text(encoding="utf-8"))["experiment"]
        if settings["seed"] == experiment.seed:
            lines = (json.loads(line) for line in (path.parent / "tasks.jsonl").read_text(encoding="utf-8").splitlines())
            stages = {line["stage"]: line["fingerprint"] for line in lines}
            name = stages.get("train dense") or stages["import"]
            return next((Path(experiment.output) / "store").glob(f"*/{name[:2]}/{name[2:18]}/model.safetensors"))
    raise SystemExit(f"{experiment.output}: no finished run of {experiment.name} with seed {experiment.seed}; run the experiment first")


def scores(name: str, model: nn.Module, groups: list[Group], experiment: Experiment) -> Tensor:
    """Returns torch-pruning's importance of every unit, all groups one after another: float64 (S,)."""
    importance, hessian = IMPORTANCES[name](), name.startswith("GroupHessian")
    model.requires_grad_(True).zero_grad()
    if hessian:
        importance.zero_grad()
    batches = () if name.startswith("GroupMagnitude") else experiment.data.calibration(0, 1)
    for number, batch in enumerate(batches, 1):
        outputs = forward(experiment.loss, model, batch.images_NCHW)
        loss = calibration_loss(experiment.loss, model, outputs, batch.labels, derived_seed(0, number))
        if hessian:  # it expects one gradient per accumulation, and keeps only the last
            model.zero_grad()
        loss.backward()
        if hessian:
            importance.accumulate_grad(model)
    graph = tp.DependencyGraph().build_dependency(model, torch.zeros(1, *experiment.data.input_shape), verbose=False)
    group_scores = []
    for group in groups:
        owners = (model.get_submodule(part.tensor.rpartition(".")[0]) for part in group.produced)
        root = next(owner for owner in owners if isinstance(owner, nn.Linear | nn.Conv2d))
        removing = tp.prune_linear_out_channels if isinstance(root, nn.Linear) else tp.prune_conv_out_channels
        group_scores.append(importance(graph.get_pruning_group(root, removing, list(range(group.units)))).detach().double())
    return torch.cat(group_scores)


@torch.inference_mode()
def accuracy_of(model: nn.Module, dense: nn.Module, experiment: Experiment) -> float:
    """Returns top-1, or agreement with the dense model if there are fewer than 100 test images."""
    parts = [(model(b.images_NCHW), dense(b.images_NCHW), b.labels) for b in experiment.data.evaluation("test", 0, 1)]
    outputs, before, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    metrics = of_outputs(Output.LOGITS, outputs, labels, before)
    return metrics["top1"] if len(labels) >= 100 else metrics["agreement"]


def remove_units(dense: Path, groups: list[Group], kept: dict[str, Tensor], to: Path) -> Path:
    """Writes the model without the units that are not in ``kept``, and returns the file."""
    family, (state, _) = load_family(dense), load_state(dense)
    smaller = take(state, groups, kept)
    save_model(to, shrunk(family, state, smaller, groups, kept), smaller, {})
    return to


def macs_of(family: ModelFamily, experiment: Experiment) -> float:
    return cost_of(Of.MACS, family, [], experiment.data.input_shape).total


def recovered(file: Path, dense: Path, experiment: Experiment) -> Path:
    """Returns the file of the model after the experiment's recovery, trained as a run would."""
    if experiment.recovery is None:
        raise SystemExit("--recover: the experiment has no recovery; choose one, for example recovery=adamw")
    directory = file.parent / "recovered"
    if read_record(directory) is None:
        to = Destination(f"{digest(file)}-{experiment.seed}", directory)
        progress = directory / "progress.jsonl"
        experiment.cluster.gang(TrainTask(file, dense, experiment.data, experiment.recovery, experiment.seed, progress, to))
    return directory / MODEL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--removed", nargs="+", type=float, default=[0.25, 0.5, 0.75])
    parser.add_argument("--recover", nargs="*", type=float, default=[], help="those of --removed whose models are also recovered")
    parser.add_argument("--of", default="macs")
    parser.add_argument("--importances", nargs="+", choices=IMPORTANCES, default=list(IMPORTANCES))
    options = parser.parse_args()
    columns = [f"{removed:.0%} of {options.of}" for removed in options.removed]
    columns += [f"{removed:.0%}, recovered" for removed in options.recover]
    table: dict[str, dict[str, list[float]]] = {name: {column: [] for column in columns} for name in options.importances}
    console = Console(stderr=True)
    for seed in options.seeds:
        experiment = experiment_of([*options.overrides, "cluster=local", f"seed={seed}"])
        path = dense_file(experiment)
        family, dense = load_family(path), load_pruned(path)
        streams = experiment.pruner.removes_streams
        groups = find_groups(family, experiment.data.input_shape, streams)
        for name, row in table.items():
            order_S = scores(name, load_pruned(path), groups, experiment).argsort(stable=True).tolist()
            for removed in options.removed:
                pruner = UnitRandom(UnitTarget(removed, Of(options.of), 1, 0.0), streams, seed=0)  # only its target is used
                kept = select_for_step(unit_problem(pruner, family, experiment.data.input_shape), order_S, [])
                place = Path(experiment.output) / "torch_pruning" / experiment.name / f"{name}-{removed:g}-{options.of}-{seed}"
                file = remove_units(path, groups, kept, place / MODEL)
                one_shot, later = accuracy_of(load_pruned(file), dense, experiment), None
                row[f"{removed:.0%} of {options.of}"].append(one_shot)
                if removed in options.recover:
                    later = accuracy_of(load_pruned(recovered(file, path, experiment)), dense, experiment)
                    row[f"{removed:.0%}, recovered"].append(later)
                result = {
                    "method": f"torch-pruning {name}",
                    "asked": f"{removed:.0%} of {options.of}",
                    "macs": 1 - macs_of(load_family(file), experiment) / macs_of(family, experiment),
                    "one_shot": one_shot,
                    "recovered": later,
                }
                write_text(place / "result.json", json.dumps(result))
            console.print(
                f"seed {seed}, {name}: " + ", ".join(f"{column} {100 * values[-1]:.1f}" for column, values in row.items() if values)
            )
    print(f"| torch-pruning {version('torch-pruning')} | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name, row in table.items():
        cells = [f"{100 * mean(values):.1f} ± {100 * pstdev(values):.1f} ({len(values)})" for values in row.values()]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
