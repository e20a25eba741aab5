"""Makes the launcher and the sweeper of this project known to Hydra."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType

from hydra.core.plugins import Plugins

from orchestrator.sweep.launcher import RayShared
from orchestrator.sweep.search import Search

PACKAGE = "hydra_plugins"  # Hydra takes plugins only from modules in a package of this name, and finds them by importing it
MODULE = f"{PACKAGE}.secateur"


def register_plugins() -> None:
    """Registers both under the names that ``conf/hydra`` gives them, in a module that has no file."""
    plugins = Plugins.instance()  # which looks for other plugins first
    if PACKAGE not in sys.modules and find_spec(PACKAGE) is None:
        sys.modules[PACKAGE] = ModuleType(PACKAGE)
    module = sys.modules.setdefault(MODULE, ModuleType(MODULE))
    for plugin in (RayShared, Search):
        setattr(module, plugin.__name__, plugin)
        plugins.register(plugin)
