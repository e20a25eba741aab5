"""The launcher ``ray_shared``: points of a sweep run side by side on the workers of one cluster."""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from orchestrator.cluster.base import Cluster
from orchestrator.cluster.watch import watched
from orchestrator.config import Experiment
from orchestrator.sweep.side_by_side import Job, experiment_of_point, run_side_by_side
from workers.checks import require
from workers.errors import ConfigError


class RayShared(Launcher):
    """Starts one Ray, and runs at most ``n_jobs`` points at once as processes that are attached to it. With cluster=local, without Ray."""

    __module__ = "hydra_plugins.secateur"  # Hydra takes the names of plugins from hydra_plugins only

    def __init__(self, n_jobs: int | None) -> None:
        require(n_jobs is None or n_jobs >= 1, "hydra.launcher.n_jobs", "at least 1, or null", n_jobs)
        self.n_jobs = n_jobs
        self._context: HydraContext | None = None
        self._config: DictConfig | None = None
        self._cluster: tuple[Cluster, int, dict[str, Any]] | None = None  # what points share, once it has started

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._context, self._config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        assert self._config is not None
        composed = [self._composed(initial_job_idx + index, overrides) for index, overrides in enumerate(job_overrides)]
        experiments = [_experiment(config) for config in composed]
        known = [experiment for experiment in experiments if experiment is not None]
        jobs, shared = self._shared([experiment.cluster for experiment in known]) if known else (1, {})
        points, fixed = [], {str(override) for override in self._config.hydra.overrides.task}
        for config, experiment, overrides in zip(composed, experiments, job_overrides, strict=True):
            with open_dict(config):
                config.cluster.update(shared)
            timed = experiment is not None and experiment.is_timed
            directory = Path(str(config.hydra.sweep.dir)) / str(config.hydra.sweep.subdir)
            changed = [override for override in filter_overrides(overrides) if override not in fixed]
            points.append(Job(config.hydra.job.num, tuple(changed), config, directory, timed))
        return run_side_by_side(points, jobs)

    def _composed(self, number: int, overrides: Sequence[str]) -> DictConfig:
        """Returns the configuration of a point, with the settings of Hydra that the process of the point finds in it."""
        assert self._context is not None and self._config is not None
        config = self._context.config_loader.load_sweep_config(self._config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
            config.hydra.sweep.dir = str(Path(str(self._config.hydra.sweep.dir)).absolute())  # its date is that of the sweep
        return config

    def _shared(self, clusters: Sequence[Cluster]) -> tuple[int, dict[str, Any]]:
        """Starts what the points share, once for all batches of a sweep, and returns how many run at once and what they set.

        Raises: ConfigError if the points do not have equal settings.
        """
        first = clusters[0] if self._cluster is None else self._cluster[0]
        same = all(type(cluster) is type(first) and _settings(cluster) == _settings(first) for cluster in clusters)
        if not same:
            raise ConfigError("hydra/launcher=ray_shared: the points share one cluster, but their settings of it differ; sweep over others")
        if self._cluster is None:
            jobs, stack = min(self.n_jobs or first.runs_at_once, len(clusters)), ExitStack()
            atexit.register(stack.close)
            stack.enter_context(watched())
            self._cluster = first, jobs, stack.enter_context(first.shared_by(jobs))
        return self._cluster[1:]


def _experiment(config: DictConfig) -> Experiment | None:
    """Returns the typed settings of a point, or None if they are wrong: the process of the point says what is."""
    try:
        return experiment_of_point(config)
    except ConfigError:
        return None


def _settings(cluster: Cluster) -> dict[str, Any]:
    return {name: value for name, value in vars(cluster).items() if not name.startswith("_") and name != "warnings"}
