"""Composes configurations with Hydra from the project's yaml files, and from those of installed packages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.metadata import entry_points
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from orchestrator.config import Experiment, load
from workers.errors import ConfigError, SecateurError

CONF = str(Path(__file__).resolve().parent.parent / "conf")
ENTRY_POINTS = "secateur.conf"


class PackagesWithConf(SearchPathPlugin):
    """Packages whose yaml files are choices beside the project's own. Each names its folder in the entry point ``secateur.conf``."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for entry in entry_points(group=ENTRY_POINTS):
            search_path.append(provider=entry.name, path=f"pkg://{entry.value}")


def find_packages() -> None:
    """Makes Hydra search the yaml files of packages."""
    Plugins.instance().register(PackagesWithConf)


def composed(overrides: Sequence[str]) -> DictConfig:
    """Returns the configuration of a command line with these overrides. Raises: ConfigError if Hydra cannot compose it."""
    find_packages()
    try:
        with _without_hydra(), initialize_config_dir(CONF, version_base="1.3"):
            return compose("config", overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(complaint(error)) from error


def experiment_of(overrides: Sequence[str]) -> Experiment:
    """Returns the experiment of a command line with these overrides. Raises: ConfigError."""
    return load(composed(overrides))


@contextmanager
def _without_hydra() -> Iterator[None]:
    """Sets aside the Hydra that the caller's program runs under, if it does."""
    state = GlobalHydra.instance()
    before = state.hydra
    state.clear()
    try:
        yield
    finally:
        state.hydra = before


def complaint(error: Exception) -> str:
    """Returns a composition error of Hydra as one line: the unknown name, and similar ones."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        known = [str(option) for option in error.options or []]
        return f"{group}={name}: there is no such {group or 'configuration'}{_suggestion(name, known)}"
    cause = error.__cause__
    if isinstance(cause, SecateurError):  # of a launcher or a sweeper, which Hydra makes
        return str(cause)
    key = getattr(cause, "full_key", None) or getattr(error, "full_key", None)
    if key and "not in struct" in str(getattr(cause or error, "msg", "")):
        parent = getattr(cause or error, "parent_node", None)
        known = [str(name) for name in parent] if isinstance(parent, DictConfig) else []
        if isinstance(parent, DictConfig) and not known:
            return f"{key}: its section is empty and takes any setting; add it with a plus: +{key}=…"
        return f"{key}: unknown setting{_suggestion(str(key).rpartition('.')[2], known)}"
    lines = [line for line in str(error).splitlines() if line and not line.startswith("See https://")]
    return "; ".join(lines[:2]) or type(error).__name__


def _suggestion(name: str, known: list[str]) -> str:
    similar = get_close_matches(name, known, n=3, cutoff=0.5)
    if similar:
        return f"; did you mean {' or '.join(similar)}?"
    return f"; choose one of {', '.join(sorted(known))}" if known else ""
