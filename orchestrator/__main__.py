"""``python -m orchestrator`` composes the configuration, checks it, and plans or runs. Bad input is one line and exit status 2."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from orchestrator.composing import CONF, complaint, find_packages
from workers.errors import ConfigError, SecateurError

if TYPE_CHECKING:
    from orchestrator.config import Experiment


@hydra.main(config_path=CONF, config_name="config", version_base="1.3")
def conduct(composed: DictConfig) -> float | None:
    """Runs a composed configuration and returns the final accuracy, for sweepers."""
    try:
        return carry_out(composed)
    except SecateurError as error:  # printed here, since Hydra would add a line of its own
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)


def carry_out(composed: DictConfig) -> float | None:
    """Plans or runs, and prints the outcome."""
    from orchestrator.config import Mode, as_dict, check_request, load

    if composed.mode == Mode.STATUS.value:  # before anything is checked that only a run needs
        from orchestrator.status.table import show_status

        show_status(Path(composed.output), Console())
        return None
    experiment = load(composed)
    if experiment.mode is Mode.RUN:
        check_request(experiment)  # before anything heavy is imported
    from orchestrator.launch import missing, plan_experiment, run_experiment

    console = Console()
    if experiment.mode is Mode.PLAN:
        from orchestrator.planning.plan_table import plan_table

        console.print(plan_table(plan_experiment(experiment)))
        for refusal in missing(experiment):
            console.print(f"The run would end here with an error: {refusal}", soft_wrap=True, markup=False)
        return None
    if experiment.mode is Mode.STRUCTURE:
        from orchestrator.structure_table import structure_table

        console.print(structure_table(experiment.model, experiment.data.input_shape))
        return None
    if experiment.mode is Mode.LATENCY:
        print_latency(experiment, console)
        return None
    from orchestrator.report.console import summary_table

    report, directory = run_experiment(experiment, as_dict(composed), command(), sweep())
    console.print(summary_table(report))
    console.print(f"report: {directory / 'report.html'}\nmodel:  {directory / 'model.safetensors'}", soft_wrap=True)
    return report.metric(report.stages[-1].name, report.headline_metric) if report.headline_metric else None


def print_latency(experiment: Experiment, console: Console) -> None:
    """Measures the latency table, and prints it and its files."""
    from orchestrator.allocation.latency_table import TABLE
    from orchestrator.launch import measure_latency
    from orchestrator.report.staircases import latency_table, write_page
    from orchestrator.report.terms import timed_with

    table, conditions, directory = measure_latency(experiment)
    console.print(latency_table(table, timed_with(**conditions)))
    page = write_page(table, timed_with(**conditions), directory)
    console.print(f"picture: {page}\ntable:   {directory / TABLE}", soft_wrap=True)


def sweep() -> str | None:
    """Returns the start of the sweep that the run is a point of; None if it is by itself."""
    if not HydraConfig.initialized() or HydraConfig.get().mode is not RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().sweep.dir).name


def command() -> str:
    """Returns the command line, so that it can be repeated."""
    return shlex.join(["python", "-m", "orchestrator", *sys.argv[1:]])


def main() -> None:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises its errors; they are printed below
    os.environ["SECATEUR_WORKER"] = "driver"  # the name of this process in records
    find_packages()
    try:
        conduct()
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {complaint(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; what was computed is kept", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
