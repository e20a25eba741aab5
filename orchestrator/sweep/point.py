"""Carries out one point of a sweep in this process, which was started for it: ``python -m orchestrator.sweep.point RESULT < CONFIG``.

Standard input begins with the pickled configuration of the point, as Hydra composed it, and stays open as long as the sweep lives.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.utils import run_job, setup_globals
from hydra.types import HydraContext

from orchestrator.__main__ import conduct
from orchestrator.composing import CONF, find_packages
from orchestrator.sweep.records import read_points


def main(result: Path) -> None:
    """Runs the point as Hydra's own launchers do, with the callbacks of jobs, and leaves what it returned in ``result``."""
    config = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_sweep, name="end with the sweep", daemon=True).start()
    setup_globals()
    find_packages()
    os.environ["SECATEUR_WORKER"] = "driver"
    sys.argv = ["orchestrator", *(str(override) for override in config.hydra.overrides.task)]  # the command in the report
    context = HydraContext(config_loader=ConfigLoaderImpl(create_config_search_path(CONF)), callbacks=Callbacks(config))
    task: Any = conduct.__wrapped__  # without Hydra's command line
    ended = run_job(task, config, "hydra.sweep.dir", "hydra.sweep.subdir", context)
    point = next((each for each in read_points(Path(config.hydra.sweep.dir)) if each.number == config.hydra.job.num), None)
    if point is not None and point.has_failed:  # its error is printed already; the last line is what the sweep says
        sys.exit(f"error: {point.error}")
    result.write_text(json.dumps(ended.return_value), encoding="utf-8")


def _end_with_sweep() -> None:
    """Ends this process when the sweep has closed standard input, or was killed."""
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
