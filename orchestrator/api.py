"""Pruning from Python: a module and batches in, the smaller module, its masks and a report out."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.composing import composed
from orchestrator.config import Experiment, as_dict, load
from workers.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from orchestrator.planning.plan import Plan
    from orchestrator.report.result import Report
    from workers.batches import Samples

CALIBRATION_BATCH = 4  # samples whose gradients are averaged into one, unless settings say otherwise
EVALUATION_BATCH = 64


@dataclass(frozen=True)
class Pruned:
    """The result of ``prune``.

    ``model`` is a new module; the one that was given is as it was. ``masks`` are bool tensors of the shapes of the weights, by the names of
    their layers, True where a weight is kept; empty if units were removed. ``directory`` has ``report.html`` and ``model.safetensors``.
    """

    model: nn.Module
    masks: dict[str, Tensor]
    report: Report
    directory: Path

    def __str__(self) -> str:
        from rich.console import Console

        from orchestrator.report.console import summary_table

        text = io.StringIO()
        Console(file=text, width=100).print(summary_table(self.report))
        return f"{text.getvalue()}report: {self.directory / 'report.html'}"


def prune(
    model: nn.Module,
    batches: Iterable[Any],
    test: Iterable[Any] | None = None,
    *,
    pruner: str = "guided",
    sparsity: float | None = None,
    removed: float | None = None,
    loss: str | Callable[[Any, Any], Tensor] | None = None,
    cluster: str = "local",
    name: str | None = None,
    output: str | os.PathLike[str] = "runs",
    settings: Sequence[str] = (),
) -> Pruned:
    """Prunes a module of yours.

    Args:
        model: any module with float32 weights that takes images (N, C, H, W). It is copied, and not changed.
        batches: calibration data, such as a ``DataLoader``: tensors of images, pairs of images and labels, or dictionaries with
            ``pixel_values`` and ``labels``. It is read once, from beginning to end; a few hundred to a few thousand images are enough.
        test: batches for the accuracies in the report. Without them, the calibration data are used.
        pruner: the name of a file in ``conf/pruner``.
        sparsity: fraction of the prunable weights to mask, for pruners of weights.
        removed: fraction of the multiply-adds to remove, for pruners of units; with a setting ``pruner.target.of=latency`` (and so on), of
            the latency.
        loss: ``labels``, ``sampled`` or ``features`` (see ``conf/config.yaml``), or a function of the outputs and labels of a batch that
            returns their mean loss. By default the cross-entropy if there are labels, and otherwise ``features``: the outputs themselves.
        cluster: ``local`` (this process), ``ray``, or any other file in ``conf/cluster``.
        name: the name of the run; by default the class of the module.
        output: the folder of runs and of the store. The same call continues an earlier one there, and computes nothing twice.
        settings: more settings, as on the command line: ``["pruner.block_size=512", "steps=2"]``.

    Raises: ConfigError if the module, the data or the settings do not fit; SecateurError if the run fails.
    """
    from orchestrator.launch import run_experiment
    from workers.export import load_masks, load_pruned
    from workers.models.given import as_given
    from workers.records import MODEL

    call = Call(model, batches, test, pruner, sparsity, removed, loss, cluster, name, output, settings)
    os.environ.setdefault("SECATEUR_WORKER", "driver")
    with _unchanged(), call.prepared() as (asked, experiment):
        report, directory = run_experiment(experiment, asked, str(call))
        smaller = as_given(load_pruned(directory / MODEL), model)
    return Pruned(smaller, load_masks(directory / MODEL), report, directory)


def plan(model: nn.Module, batches: Iterable[Any], test: Iterable[Any] | None = None, **arguments: Any) -> Plan:
    """Prints and returns what ``prune`` with the same arguments would take: seconds, memory and disk space.

    Raises: ConfigError if the module, the data or the settings do not fit.
    """
    from rich.console import Console

    from orchestrator.launch import plan_experiment
    from orchestrator.planning.plan_table import plan_table

    with Call(model, batches, test, **arguments).prepared() as (_, experiment):
        planned = plan_experiment(experiment)
    Console().print(plan_table(planned))
    return planned


@dataclass(frozen=True)
class Call:
    """The arguments of ``prune``."""

    model: nn.Module
    batches: Iterable[Any]
    test: Iterable[Any] | None
    pruner: str = "guided"
    sparsity: float | None = None
    removed: float | None = None
    loss: str | Callable[[Any, Any], Tensor] | None = None
    cluster: str = "local"
    name: str | None = None
    output: str | os.PathLike[str] = "runs"
    settings: Sequence[str] = ()

    def __post_init__(self) -> None:
        from torch import nn

        if not isinstance(self.model, nn.Module):
            raise ConfigError(f"model: expected a torch module, got {type(self.model).__name__}")
        if not (self.loss is None or callable(self.loss) or self.loss in ("labels", "sampled", "features")):
            raise ConfigError(f"loss: expected labels, sampled, features or a function of outputs and labels, got {self.loss!r}")
        if isinstance(self.settings, str) or not all(isinstance(setting, str) for setting in self.settings):
            raise ConfigError(f'settings: expected a list of strings such as ["steps=2"], got {self.settings!r}')

    def __str__(self) -> str:
        """The call as the report shows it."""
        given = {"pruner": repr(self.pruner), "sparsity": self.sparsity, "removed": self.removed, "settings": list(self.settings) or None}
        if self.loss is not None:
            given["loss"] = getattr(self.loss, "__name__", type(self.loss).__name__) if callable(self.loss) else repr(self.loss)
        arguments = ", ".join(f"{key}={value}" for key, value in given.items() if value is not None)
        return f"orchestrator.prune({type(self.model).__name__}, ..., {arguments})"

    @contextmanager
    def prepared(self) -> Iterator[tuple[dict[str, Any], Experiment]]:
        """The configuration of the run and its experiment, whose model can be built inside of the context.

        The module's weights and the samples are written into files in the store.
        """
        from orchestrator.identity.given import given_identity
        from workers.batches import called, check_module, gathered, is_classifier, require_called
        from workers.models import library
        from workers.models.given import Given
        from workers.models.permitted import forbid, permit

        check_module(self.model)
        function = self.loss if callable(self.loss) else None
        calibration = gathered(self.batches, "batches")
        testing = calibration if self.test is None else gathered(self.test, "test")
        given = Given(self.model, function)
        classifier = is_classifier(model := given(), calibration, self.loss)
        order = called(model, library.matrices(model), calibration)
        ends = [*order[:1], *(order[-1:] if classifier else [])]
        kind = "labels" if function is not None else self.loss or ("features" if calibration.labels is None else "labels")
        target = f"given.{type(self.model).__name__}.{given_identity(given.module, given.skeleton, function)}"
        folder = Path(self.output).resolve() / "store" / "given"
        asked = composed(
            [
                *self._places(),
                "model=module",
                f"model.target={target}",
                f"model.checkpoint={_quoted(given.save(folder))}",
                f"model.classifier={str(classifier).lower()}",
                f"model.stem_and_heads=[{','.join(ends)}]",
                f"loss={kind}",
                *_data(calibration, testing, folder),
                *self._choices(),
                *self.settings,
            ]
        )
        permit({target: given})
        try:
            experiment = load(asked)
            require_called(order, [layer.name for layer in experiment.model.layers(given.skeleton)])
            yield as_dict(asked), experiment
        finally:
            forbid(target)

    def _places(self) -> list[str]:
        from torch import get_num_threads

        name = self.name or re.sub(r"[^a-z0-9]+", "_", type(self.model).__name__.lower()).strip("_")
        threads = [f"cluster.threads={get_num_threads()}"] if self.cluster == "local" else []
        return [f"name={_quoted(name)}", f"output={_quoted(self.output)}", f"cluster={self.cluster}", *threads]

    def _choices(self) -> list[str]:
        targets = {"sparsity": self.sparsity, "removed": self.removed}
        given = [f"pruner.target.{key}={value}" for key, value in targets.items() if value is not None]
        return ["recovery@training=none", "recovery=none", f"pruner={self.pruner}", *given]


def _data(calibration: Samples, testing: Samples, folder: Path) -> list[str]:
    batch = min(CALIBRATION_BATCH, len(calibration))
    return [
        "data=tensors",
        f"data.train_file={_quoted(calibration.save(folder))}",
        f"data.test_file={_quoted(testing.save(folder))}",
        f"data.calibration_batches={len(calibration) // batch}",
        f"data.calibration_batch_size={batch}",
        f"data.shards={min(2, len(calibration) // batch)}",
        f"data.eval_batch_size={min(EVALUATION_BATCH, len(testing))}",
    ]


def _quoted(value: object) -> str:
    """A value in quotation marks of Hydra's grammar, in which spaces and other signs stand for themselves."""
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"


@contextmanager
def _unchanged() -> Iterator[None]:
    """Leaves the random state, the number of threads and the precision of torch as they were: a worker in this process sets its own."""
    import torch

    threads, precision = torch.get_num_threads(), (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = precision
