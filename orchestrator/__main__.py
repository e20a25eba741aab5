"""``python -m orchestrator`` composes the configuration, checks it, and plans or runs. Bad input is one line and exit status 2.

With ``--multirun``, each point of the sweep leaves a record, and a point that fails does not end the others.
"""

from __future__ import annotations

import os
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

from orchestrator.command import command
from orchestrator.composing import CONF, complaint, find_packages
from orchestrator.sweep.plugins import register_plugins
from orchestrator.sweep.records import fail_point, finish_point, start_point
from workers.checks import require
from workers.disks import refusal
from workers.errors import ConfigError, SecateurError

if TYPE_CHECKING:
    from orchestrator.config import Experiment
    from orchestrator.objectives import Values


@hydra.main(config_path=CONF, config_name="config", version_base="1.3")
def conduct(composed: DictConfig) -> Values:
    """Runs a composed configuration and returns its objectives, for sweepers."""
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        return conduct_point(composed)
    try:
        return carry_out(composed)[0]
    except SecateurError as error:  # printed here, since Hydra would add a line of its own
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)


def conduct_point(composed: DictConfig) -> Values:
    """Runs one point of a sweep, and leaves its record there. An error ends this point alone; it has no objectives then."""
    here = HydraConfig.get()
    sweep = Path(here.sweep.dir).resolve()
    point = start_point(sweep, int(here.job.num), list(here.overrides.task))
    try:
        values, directory = carry_out(composed)
    except Exception as error:
        print(f"error: {fail_point(sweep, point, error)}", file=sys.stderr, flush=True)
        return None
    finish_point(sweep, point, directory)
    return values


def carry_out(composed: DictConfig) -> tuple[Values, Path | None]:
    """Plans or runs, and prints the outcome. Returns the objectives of a run and its directory, if it was carried out."""
    from orchestrator.config import Mode, as_dict, check_request, load

    if composed.mode == Mode.STATUS.value:  # before anything is checked that only a run needs
        from orchestrator.status.table import show_status

        show_status(Path(composed.output), Console())
        return None, None
    experiment = load(composed)
    if experiment.mode is Mode.RUN:
        check_request(experiment)  # before anything heavy is imported
    console = Console()
    if experiment.mode is Mode.CLEAN:
        clean(experiment, console)
        return None, None
    from orchestrator.launch import missing, plan_experiment, run_experiment

    if experiment.mode is Mode.PLAN:
        from orchestrator.planning.plan_table import plan_table

        console.print(plan_table(plan_experiment(experiment)))
        for refusal in missing(experiment):
            console.print(f"The run would end here with an error: {refusal}", soft_wrap=True, markup=False)
        return None, None
    if experiment.mode is Mode.STRUCTURE:
        from orchestrator.structure_table import structure_table

        console.print(structure_table(experiment.model, experiment.data.input_shape))
        return None, None
    if experiment.mode is Mode.LATENCY:
        print_latency(experiment, console)
        return None, None
    from orchestrator.objectives import values
    from orchestrator.report.console import summary_table

    report, directory = run_experiment(experiment, as_dict(composed), command(), sweep_start())
    console.print(summary_table(report))
    console.print(f"report: {directory / 'report.html'}\nmodel:  {directory / 'model.safetensors'}", soft_wrap=True)
    return values(report, experiment.objectives), directory


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


def clean(experiment: Experiment, console: Console) -> None:
    """Shows what the store holds and which runs need it, and frees the rest if that is asked for."""
    from orchestrator.clean_table import clean_table
    from orchestrator.cleaning import free_results, survey
    from orchestrator.quantities import count, size
    from orchestrator.store import Store

    root = Path(experiment.output) / "store"
    require(root.is_dir(), "output", "a folder with a store", experiment.output)
    store = Store(root)
    found = survey(store, experiment.clean)
    to_free = found.to_free(experiment.clean)
    console.print(clean_table(found, to_free, experiment.clean))
    if experiment.clean.free and to_free:
        freed = free_results(store, to_free)
        held = len(to_free) - len(freed)
        kept = f"; {count(held, 'result')} of them stay, because a driver has used them meanwhile" if held else ""
        console.print(f"Freed {count(len(freed), 'result')}, {size(sum(result.bytes for result in freed))}{kept}.", soft_wrap=True)


def sweep_start() -> str | None:
    """Returns the start of the sweep that the run is a point of; None if it is by itself."""
    if not HydraConfig.initialized() or HydraConfig.get().mode is not RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().sweep.dir).name


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
    except SystemExit as ended:
        from orchestrator.status.live import TERMINATED

        if ended.code not in TERMINATED:
            raise
        print("error: terminated; run the same command again to continue: finished work is kept", file=sys.stderr)
        sys.exit(TERMINATED[1])
    except (HydraException, OmegaConfBaseException) as error:  # some of Hydra's are an OSError, too
        print(f"error: {complaint(error)}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        refused = refusal(error)
        if refused is None:
            raise
        print(f"error: {refused}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
