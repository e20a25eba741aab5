"""The sweeper ``search``: points chosen by optuna. The only file that imports optuna."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from orchestrator.objectives import OBJECTIVES
from orchestrator.sweep.found import print_best, report_of
from orchestrator.sweep.records import forget_point
from workers.checks import require
from workers.errors import ConfigError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

STUDY = "study.jsonl"  # in the directory of the sweep
OVERRIDES, RETURNED = "overrides", "returned"  # attributes of a trial: what its point overrides; whether the point ended


class Search(Sweeper):
    """Asks optuna for points, ``at_once`` at a time, and tells it what they returned. Everything is kept in the directory of the sweep."""

    __module__ = "hydra_plugins.secateur"  # Hydra takes the names of plugins from hydra_plugins only

    def __init__(self, trials: int, at_once: int, seed: int, margin: float | None, params: Mapping[str, Any]) -> None:
        for name, value in (("trials", trials), ("at_once", at_once)):
            require(value >= 1, f"hydra.sweeper.{name}", "at least 1", value)
        require(margin is None or 0 < margin < 1, "hydra.sweeper.margin", "a difference of accuracies, such as 0.2, or null", margin)
        self.trials, self.at_once, self.seed, self.margin = trials, at_once, seed, margin
        self.params = {str(name): str(value) for name, value in params.items()}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher: Launcher | None = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        assert self.config is not None and self.hydra_context is not None
        objectives = [str(name) for name in self.config.objectives]
        for name in objectives:
            require(name in OBJECTIVES, "objectives", f"names among {', '.join(OBJECTIVES)}", name)
        given = [f"{name}={value}" for name, value in self.params.items()] + arguments
        parsed = {o.get_key_element(): o for o in OverridesParser.create(self.hydra_context.config_loader).parse_overrides(given)}
        space = {name: _distribution(name, override) for name, override in parsed.items() if override.is_sweep_override()}
        fixed = [f"{name}={o.get_value_element_as_str()}" for name, o in parsed.items() if name not in space]
        require(bool(space), "hydra.sweeper.params", "settings to search, such as pruner.dampening: interval(1e-5,1e-1)", {})
        folder = Path(str(self.config.hydra.sweep.dir))
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        study = open_study(folder / STUDY, objectives, space, fixed, self.seed)
        returned = self._run(study, space, fixed)
        print_best(study, objectives, folder)
        return returned

    def _run(self, study: Study, space: dict[str, BaseDistribution], fixed: Sequence[str]) -> list[JobReturn]:
        """Runs points until there are as many as asked for. A point that failed counts."""
        assert self.launcher is not None
        returned: list[JobReturn] = []
        while (left := self.trials - sum(RETURNED in trial.user_attrs for trial in study.get_trials(deepcopy=False))) > 0:
            trials = [study.ask(space) for _ in range(min(left, self.at_once))]
            points = [[*fixed, *(f"{name}={trial.params[name]}" for name in space), *self._stop(study)] for trial in trials]
            for trial, point in zip(trials, points, strict=True):
                trial.set_user_attr(OVERRIDES, point)
            self.validate_batch_is_legal(points)
            results = self.launcher.launch(points, initial_job_idx=trials[0].number)
            for trial, result in zip(trials, results, strict=True):
                tell(study, trial, result)
            returned += results
        return returned

    def _stop(self, study: Study) -> list[str]:
        """The override by which a point ends before its recovery if it is far below the best one."""
        facts = [trial.user_attrs for trial in study.get_trials(deepcopy=False)]
        known = [fact["one_shot_accuracy"] for fact in facts if "one_shot_accuracy" in fact]
        return [] if self.margin is None or not known else [f"stop_below={max(0.0, max(known) - self.margin):.6g}"]


def open_study(path: Path, objectives: Sequence[str], space: Mapping[str, BaseDistribution], fixed: Sequence[str], seed: int) -> Study:
    """Returns the search in ``path``, a new one if there is none. Points that were running when it was stopped are asked for again, under
    new numbers.

    Raises: ConfigError if optuna is missing, or if the search in ``path`` is another one.
    """
    optuna = _optuna()
    from optuna.distributions import distribution_to_json
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(path)))
    directions = ["maximize" if OBJECTIVES[name].maximize else "minimize" for name in objectives]
    study: Study = optuna.create_study(storage=storage, study_name="search", directions=directions, load_if_exists=True)
    trials = study.get_trials(deepcopy=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = optuna.samplers.TPESampler(seed=seed + len(trials), constant_liar=True)
    asked = {"objectives": list(objectives), "fixed": sorted(fixed), "space": {name: distribution_to_json(d) for name, d in space.items()}}
    before = study.user_attrs.get("asked")
    if before is None:
        study.set_user_attr("asked", asked)
    for part in asked:
        require(
            before is None or before[part] == asked[part],
            f"hydra/sweeper=search ({part})",
            f"those of the search in {path.parent}, which this command would continue",
            json.dumps(asked[part]),
            "change the name for another search",
        )
    for trial in trials:
        if trial.state is optuna.trial.TrialState.RUNNING:
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial(trial.params)
            forget_point(path.parent, trial.number)
    return study


def tell(study: Study, trial: Trial, result: JobReturn) -> None:
    """Tells the study what a point returned, and keeps what its report says."""
    from optuna.trial import TrialState

    assert result.cfg is not None
    for name, fact in (report_of(result.cfg) | {RETURNED: True}).items():
        trial.set_user_attr(name, fact)
    value = result.return_value
    numbers = value if isinstance(value, list | tuple) else [value]
    if len(numbers) == len(study.directions) and all(isinstance(number, float | int) and isfinite(number) for number in numbers):
        study.tell(trial, [float(number) for number in numbers])
    else:
        study.tell(trial, state=TrialState.FAIL)


def _distribution(name: str, override: Override) -> BaseDistribution:
    """Returns what optuna may choose for a setting. Raises: ConfigError."""
    _optuna()
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if isinstance(value, IntervalSweep):
        assert value.start is not None and value.end is not None
        if isinstance(value.start, int) and isinstance(value.end, int):
            return IntDistribution(value.start, value.end, log="log" in value.tags)
        return FloatDistribution(value.start, value.end, log="log" in value.tags)
    if isinstance(value, ChoiceSweep | RangeSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    raise ConfigError(f"{name}: expected an interval, a choice or a range, got {override.input_line}")


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("hydra/sweeper=search needs optuna, which is not installed; run: pip install optuna") from error
    return optuna
