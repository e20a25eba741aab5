"""Measure how well each saliency ranks single units by the real rise of the loss without them.

    python scripts/rank_correlation.py +experiment=NAME [overrides] [--model model.safetensors] [--sample 200] [--batches 8] [--json FILE]

Sets a sample of units to zero, one at a time, and measures the rise of the calibration loss (the experiment's ``loss``) over the batches
that the saliencies were computed on. Prints Spearman's rank correlation of each method's score with that rise, over the whole sample and
for each kind of unit, and with its absolute value, since the loss can also fall with loss=labels. Without ``--model``, the experiment's
checkpoint is used. If that or the images are missing, random ones are used, which only shows that the script works.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from stand_ins import images, model_file
from torch import Tensor, nn

from orchestrator.composing import experiment_of
from orchestrator.config import Experiment
from workers.data.base import Batch
from workers.errors import SecateurError
from workers.export import load_family, load_pruned
from workers.losses import Loss, forward, loss_increase
from workers.models.structures.find import find_groups
from workers.models.structures.groups import Group, mask_
from workers.pruners.sosp import SOSPH, SOSPI, Product
from workers.pruners.taylor import UnitTaylor
from workers.pruners.unit_baselines import UnitMagnitude, UnitRandom
from workers.pruners.units import Of, UnitPruner, UnitTarget
from workers.worker import Worker

TARGET = UnitTarget(0.5, Of.STRUCTURES, 0, 0.0)


def methods(streams: bool, epsilon: float) -> dict[str, UnitPruner]:
    return {
        "random": UnitRandom(TARGET, streams, 0),
        "magnitude": UnitMagnitude(TARGET, streams),
        "taylor": UnitTaylor(TARGET, streams, squared=False),
        "sosp_h": SOSPH(TARGET, streams, Product.SCALING, epsilon, False),
        "sosp_h, exact": SOSPH(TARGET, streams, Product.EXACT, epsilon, False),
        "sosp_i": SOSPI(TARGET, streams),
    }


def scores(
    model: nn.Module, groups: Sequence[Group], batches: Sequence[Batch], loss: Loss, options: argparse.Namespace
) -> dict[str, Tensor]:
    """Returns each method's scores of all units. Prints the reason if a method is left out."""
    by_method: dict[str, Tensor] = {}
    for name, pruner in methods(options.streams, options.epsilon).items():
        if name == "sosp_i" and sum(group.units for group in groups) > options.most_units:
            continue
        try:
            sums = pruner.collect(model, groups, lambda: iter(batches), loss, options.seed)
            by_method[name] = pruner.rank(groups, sums).score_S
        except SecateurError as error:
            print(f"{name} is left out: {error}")
            continue
        if name == "sosp_i":  # its score of a unit that is removed alone
            alone_S = sums.sums["gauss_newton_SS"].diagonal() / 2 + sums.sums["gradient_S"].abs()
            by_method["sosp_i, alone"] = alone_S / sums.samples
    return by_method


@torch.no_grad()
def rises(model: nn.Module, groups: Sequence[Group], units: Sequence[int], batches: Sequence[Batch], loss: Loss) -> list[float]:
    """Returns the rise of the loss per sample when one unit is set to zero, for each of ``units`` (positions among all units)."""
    device = next(model.parameters()).device
    moved = [Batch(images_NCHW.to(device), labels.to(device)) for images_NCHW, labels in batches]
    dense = [forward(loss, model, batch.images_NCHW) for batch in moved]
    places = [(group, unit) for group in groups for unit in range(group.units)]
    tensors, samples = dict(model.named_parameters()), sum(len(batch.labels) for batch in batches)
    loss_rises = []
    for group, unit in (places[position] for position in units):
        weights = {part.tensor: tensors[part.tensor].clone() for part in group.produced}
        mask_(tensors, [group], {group.name: torch.arange(group.units) != unit})
        outputs = [forward(loss, model, batch.images_NCHW) for batch in moved]
        rise = [loss_increase(loss, model, before, after, batch.labels) for before, after, batch in zip(dense, outputs, moved, strict=True)]
        loss_rises.append(float(torch.stack(rise).sum()) / samples)
        for name, tensor in weights.items():
            tensors[name].copy_(tensor)
    return loss_rises


def correlations(score_S: Tensor, rise: Sequence[float], units: Sequence[int], kinds: Sequence[str]) -> dict[str, float]:
    """Returns the correlations over the whole sample, for each kind of unit, and with the absolute value of the rise ("size")."""
    chosen: dict[str, list[int]] = {"all": list(range(len(units)))}
    if len(set(kinds)) > 1:
        chosen |= {kind: [index for index, other in enumerate(kinds) if other == kind] for kind in dict.fromkeys(kinds)}
    score = [float(score_S[unit]) for unit in units]
    by_kind = {name: float(spearmanr([score[i] for i in picks], [rise[i] for i in picks]).statistic) for name, picks in chosen.items()}
    return by_kind | {"size": float(spearmanr(score, [abs(value) for value in rise]).statistic)}


def load(experiment: Experiment, options: argparse.Namespace, folder: Path) -> tuple[nn.Module, list[Group], list[Batch]]:
    worker = Worker(options.device, options.threads)
    path = options.model or model_file(experiment, worker, folder)
    data, is_real = images(experiment)
    if not is_real:
        print("The data is missing, so random images are used.")
    if options.model is None and experiment.model.checkpoint is None:
        print("There is no checkpoint, so random initial weights are used.")
    groups = find_groups(load_family(path), data.input_shape, options.streams)
    calibration: Iterator[Batch] = data.calibration(0, 1)
    return load_pruned(path).to(worker.device), groups, list(islice(calibration, options.batches))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--model", type=Path, help="a model file instead of the experiment's checkpoint")
    parser.add_argument("--sample", type=int, default=200, help="number of units that are set to zero")
    parser.add_argument("--batches", type=int, default=8, help="calibration batches")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument("--streams", action="store_true")
    parser.add_argument("--epsilon", type=float, default=1e-2)
    parser.add_argument("--most-units", type=int, default=5000, help="units of the largest model for which SOSP-I is computed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    experiment = experiment_of(options.overrides)
    with tempfile.TemporaryDirectory() as folder:
        model, groups, batches = load(experiment, options, Path(folder))
        kinds = [group.kind.value for group in groups for _ in range(group.units)]
        units = torch.randperm(len(kinds), generator=torch.Generator().manual_seed(options.seed))[: options.sample].tolist()
        score_by_method = scores(model, groups, batches, experiment.loss, options)
        rise = rises(model, groups, units, batches, experiment.loss)
    by_method = {name: correlations(score_S, rise, units, [kinds[unit] for unit in units]) for name, score_S in score_by_method.items()}
    lines = Table(title=f"Spearman correlation with the rise of loss={experiment.loss.value}, {len(units)} of {len(kinds):,} units")
    lines.add_column("method")
    for column in next(iter(by_method.values())):
        lines.add_column(column, justify="right")
    for name, row in by_method.items():
        lines.add_row(name, *(f"{value:.3f}" for value in row.values()))
    Console().print(lines)
    if options.json:
        score = {name: [float(score_S[unit]) for unit in units] for name, score_S in score_by_method.items()}
        options.json.write_text(json.dumps({"correlation": by_method, "units": units, "rise": rise, "score": score}, indent=1))


if __name__ == "__main__":
    main()
