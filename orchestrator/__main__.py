"""``python -m orchestrator`` composes the configuration, checks it, and plans or runs. Bad input is one line and exit status 2."""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING

import hydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from orchestrator.composing import CONF, complaint, find_packages
from orchestrator.quantities import count, listed
from orchestrator.sweeps.launcher import RayShared
from orchestrator.sweeps.points import failures
from orchestrator.sweeps.search import Search
from workers.errors import ConfigError, SecateurError

if TYPE_CHECKING:
    from orchestrator.config import Experiment
    from orchestrator.objectives import Values


@hydra.main(config_path=CONF, config_name="config", version_base="1.3")
def conduct(composed: DictConfig) -> Values:
    """Runs a composed configuration and returns its objectives, for sweepers."""
    try:
        return carry_out(composed)
    except SecateurError as error:  # printed here, since Hydra would add a line of its own
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)


def carry_out(composed: DictConfig) -> Values:
    """Plans or runs, and prints the outcome."""
    from orchestrator.config import Mode, as_dict, check_request, load

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
    from orchestrator.objectives import values
    from orchestrator.report.console import summary_table

    report, directory = run_experiment(experiment, as_dict(composed), command())
    console.print(summary_table(report))
    console.print(f"report: {directory / 'report.html'}\nmodel:  {directory / 'model.safetensors'}", soft_wrap=True)
    return values(report, experiment.objectives)


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


def command() -> str:
    """Returns the command line, so that it can be repeated."""
    return shlex.join(["python", "-m", "orchestrator", *sys.argv[1:]])


def main() -> None:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises its errors; they are printed below
    os.environ["SECATEUR_WORKER"] = "driver"  # the name of this process in records
    find_packages()
    register_plugins()
    try:
        conduct()
    except SecateurError as error:  # of a sweep; that of a run is printed above
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except KeyboardInterrupt:
        print("error: interrupted; run the same command again to continue: finished work is kept", file=sys.stderr)
        sys.exit(130)
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {complaint(error)}", file=sys.stderr)
        sys.exit(2)
    if failures:
        print(f"error: {count(len(failures), 'point')} failed: {listed([str(number) for number in failures])}", file=sys.stderr)
        sys.exit(1)


def register_plugins() -> None:
    """Makes the launcher and the sweeper of this project known to Hydra."""
    for plugin in (RayShared, Search):
        Plugins.instance().register(plugin)


if __name__ == "__main__":
    main()
