"""From composed yaml to typed settings, checked once. ``DictConfig`` does not exist past ``load``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from enum import Enum
from typing import Any, cast, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from orchestrator.cluster.base import Cluster
from orchestrator.track import Tracking
from workers.checks import require
from workers.data.base import Dataset
from workers.errors import ConfigError
from workers.losses import Loss
from workers.models.base import ModelFamily
from workers.pruners.base import Pruner
from workers.recovery import Recovery


class Mode(Enum):
    RUN = "run"
    PLAN = "plan"  # say what a run would take, and stop


@dataclass
class Experiment:
    """The typed configuration of one run."""

    name: str
    mode: Mode
    seed: int
    output: str
    loss: Loss  # of the calibration: its rise is what pruning is predicted, and measured, to cost
    model: ModelFamily
    data: Dataset
    training: Recovery | None  # how to train the dense model when model.checkpoint is null
    pruner: Pruner
    recovery: Recovery | None
    cluster: Cluster
    tracking: Tracking


@dataclass
class Scalars:
    """The settings that belong to no component."""

    name: str
    mode: Mode
    seed: int
    output: str
    loss: Loss


COMPONENTS: dict[str, type] = {
    "model": ModelFamily,
    "data": Dataset,
    "training": Recovery,
    "pruner": Pruner,
    "recovery": Recovery,
    "cluster": Cluster,
    "tracking": Tracking,
}
OPTIONAL = ("training", "recovery")


def load(composed: DictConfig) -> Experiment:
    """Typed settings of a composed configuration. Raises: ConfigError naming the key, what was expected and what was found."""
    given = plain(composed)
    scalars: Any = _typed(Scalars, {key: value for key, value in given.items() if key not in COMPONENTS}, "")
    components = {key: _component(key, given.get(key), kind) for key, kind in COMPONENTS.items()}
    require(bool(scalars.name) and "/" not in scalars.name, "name", "a name that can be a folder", scalars.name)
    return Experiment(**vars(scalars), **components)


def _component(path: str, given: Any, kind: type) -> Any:
    choice = f"recovery@{path}" if path == "training" else path
    require(given is None or isinstance(given, dict), path, f"a component, chosen with {choice}=NAME", given)
    target = None if given is None else given.get("_target_")
    if target is None:
        require(path in OPTIONAL, path, f"a component with _target_ (a {kind.__name__})", None, f"choose one with {choice}=NAME")
        return None
    found = _class(path, target)
    require(issubclass(found, kind), f"{path}._target_", f"a {kind.__name__}", target)
    try:
        return _typed(found, {key: value for key, value in given.items() if key != "_target_"}, path)
    except ConfigError as error:  # a recipe speaks of recovery, and may be used for training
        raise ConfigError(f"{path}.{str(error).removeprefix('recovery.')}" if str(error).startswith("recovery.") else str(error)) from error


def _class(path: str, target: str) -> type:
    module, _, name = target.rpartition(".")
    require(module.split(".")[0] in ("workers", "orchestrator"), f"{path}._target_", "a class of workers or orchestrator", target)
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{path}._target_: there is no {target} ({error})") from error


def _typed(kind: type, given: dict[str, Any], path: str) -> Any:
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), _with_enums(kind, given, path)))
    except MissingMandatoryValue as error:
        raise ConfigError(f"{_key(path, error)}: a value is needed and none was given") from error
    except ConfigKeyError as error:
        raise ConfigError(f"{_key(path, error)}: unknown setting{_suggestion(kind, error)}") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{_key(path, error)}: {str(error.msg or error).splitlines()[0]}") from error


def _with_enums(kind: type, given: Mapping[str, Any], path: str) -> dict[str, Any]:
    """``given`` with the words of enum fields turned into members: OmegaConf knows members by name, users write their values."""
    hints = get_type_hints(kind)
    values = dict(given)
    for name, value in given.items():
        hint, where = hints.get(name), f"{path}.{name}".lstrip(".")
        if is_dataclass(hint) and isinstance(value, dict):
            values[name] = _with_enums(cast(type, hint), value, where)
        elif isinstance(hint, type) and issubclass(hint, Enum):
            choices = {member.value: member for member in hint}
            require(value in choices, where, " or ".join(choices), value)
            values[name] = choices[value]
    return values


def _key(path: str, error: OmegaConfBaseException) -> str:
    return ".".join(part for part in (path, error.full_key or error.key or "") if part)


def _suggestion(kind: type, error: OmegaConfBaseException) -> str:
    near = get_close_matches(str(error.key), [field.name for field in fields(kind)], n=3)
    return f"; did you mean {' or '.join(near)}?" if near else f"; known are {', '.join(field.name for field in fields(kind))}"


def plain(composed: DictConfig) -> dict[str, Any]:
    """The composed configuration as plain values, for files and trackers."""
    container = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
