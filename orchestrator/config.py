"""From composed yaml to typed settings, checked once. ``DictConfig`` does not exist past ``load``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, make_dataclass
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from orchestrator.cluster.base import Cluster
from orchestrator.objectives import OBJECTIVES
from orchestrator.tracking.base import Tracking
from workers.checks import require, require_numbers
from workers.data.base import Dataset
from workers.errors import ConfigError
from workers.latency import Latency
from workers.losses import Loss
from workers.models.base import ModelFamily
from workers.models.permitted import imported, permit
from workers.precision import Precision
from workers.pruners.base import Pruner
from workers.training.settings import Training


class Mode(Enum):
    RUN = "run"
    PLAN = "plan"  # say what a run would take, and stop
    STRUCTURE = "structure"  # list the units that can be removed from the model, and stop
    LATENCY = "latency"  # time the model and its operations at all their widths, and stop
    STATUS = "status"  # list the runs in the output directory, and stop
    CLEAN = "clean"  # show what the store holds and which runs need it, or free the rest, and stop


class Keep(Enum):
    ALL = "all"
    RECORDS = "records"  # without the files of intermediate results


@dataclass
class Storage:
    """What a run leaves in the store."""

    keep: Keep


@dataclass
class Clean:
    """What ``mode=clean`` frees: results that no kept run needs, the longest unused first."""

    keep: list[str]  # names of run directories, their first or last part, or patterns; empty: all
    size_gb: float | None  # of the store, below which nothing more is freed; None: free all that may be freed
    free: bool  # or only show

    def __post_init__(self) -> None:
        require(self.size_gb is None or self.size_gb >= 0, "clean.size_gb", "0 or more, or null", self.size_gb)


@dataclass
class Round:
    """Prune to the pruner's target, then train."""

    pruner: Pruner
    steps: int  # sub-steps on the way to the target, each with a statistic of its own and no training between
    recovery: Training | None


@dataclass
class Experiment:
    """The typed configuration of one run."""

    name: str
    mode: Mode
    seed: int
    output: str
    loss: Loss  # of the calibration: its rise is what pruning is predicted, and measured, to cost
    precision: Precision  # of the passes that collect, compare and evaluate
    compare: bool  # whether to measure the rise of the loss
    model: ModelFamily
    data: Dataset
    training: Training | None  # how to train the dense model when model.checkpoint is null
    pruner: Pruner
    steps: int
    recovery: Training | None
    stop_below: float | None  # one-shot accuracy below which the run ends before the recovery
    onnx: bool
    int8: bool
    latency: Latency  # how time is measured, for targets of latency and mode=latency
    store: Storage
    clean: Clean
    rounds: dict[str, Round]  # in order; empty: one round of the pruner, steps and recovery above
    cluster: Cluster
    tracking: Tracking
    objectives: list[str]  # what the run returns to a search

    @property
    def schedule(self) -> dict[str, Round]:
        """The rounds by name; a single one that nobody named is called ""."""
        return self.rounds or {"": Round(self.pruner, self.steps, self.recovery)}

    @property
    def is_timed(self) -> bool:
        """Whether measured times are among the results, or change them."""
        return self.int8 or any(part.pruner.is_timed for part in self.schedule.values())


FROM_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:\s*(\w+)")
COMPONENTS = (ModelFamily, Dataset, Training, Pruner, Cluster, Tracking)  # settings that are classes, each chosen from a folder of conf/


def load(composed: DictConfig) -> Experiment:
    """Typed settings of a composed configuration. Raises: ConfigError with the key, what was expected and what it got."""
    _refuse_environment(OmegaConf.to_container(composed, resolve=False), "")
    given = as_dict(composed)
    scalars = _scalars(Experiment, given, "")
    _check_places(scalars["name"], scalars["output"])
    require(scalars["seed"] >= 0, "seed", "0 or more", scalars["seed"])
    _check_search(scalars["objectives"], scalars["stop_below"])
    chosen = {name: _component(name, given.get(name), kind) for name, kind in components(Experiment)}
    experiment = Experiment(**scalars, **chosen, rounds=_rounds(given))
    experiment.pruner.check_steps("steps", experiment.steps)
    return experiment


def _refuse_environment(settings: Any, path: str) -> None:
    """The values of settings are written into reports and model files, where no secret of the environment may get. Raises: ConfigError."""
    if isinstance(settings, dict | list):
        for name, value in settings.items() if isinstance(settings, dict) else enumerate(settings):
            _refuse_environment(value, f"{path}.{name}".lstrip("."))
    elif isinstance(settings, str) and (found := FROM_ENVIRONMENT.search(settings)):
        remedy = f'settings are written into files; if it is no secret, pass {path}="${found[1]}" on the command line'
        require(False, path, "a value", settings, remedy)


def components(kind: type) -> list[tuple[str, type]]:
    """The settings of ``kind`` that are components, and what each must be."""
    hints = {name: get_args(hint)[0] if get_args(hint) else hint for name, hint in get_type_hints(kind).items()}
    return [(name, hint) for name, hint in hints.items() if hint in COMPONENTS]


def _scalars(kind: type, given: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Typed values of the settings of ``kind`` that are no components (and no rounds). Raises: ConfigError for any key that it lacks."""
    apart = {*dict(components(kind)), "rounds"}
    known = [(name, Any if name in apart else hint) for name, hint in get_type_hints(kind).items()]
    values = vars(_typed(make_dataclass(kind.__name__, known), dict(given), path))
    return {name: value for name, value in values.items() if name not in apart}


def check_request(experiment: Experiment) -> None:
    """What a run needs and a plan does not, as far as it can be checked before any package is imported. Raises: ConfigError."""
    require(
        experiment.model.checkpoint is not None or experiment.training is not None,
        "model.checkpoint",
        "a checkpoint, or a recipe to train the dense model (recovery@training=NAME)",
        None,
    )


def _check_places(name: str, output: str) -> None:
    """Check that the name and the output directory of a run can be folders. Raises: ConfigError."""
    plain = name.isprintable() and name == name.strip() and not name.startswith(".") and not {*name} & {*"/\\"}
    require(bool(name) and plain and len(name) <= 100, "name", "a name for a folder (no slash, no leading dot)", name)
    require(bool(output.strip()) and output.isprintable(), "output", "a folder", output, "output=. is the current folder")
    require(not output.startswith("~"), "output", "a path without ~, which only shells replace", output, 'output="$HOME/runs"')
    places = [Path(output), *Path(output).parents]
    taken = next((place for place in places if place.exists() and not place.is_dir()), None)
    require(taken is None, "output", "a folder, or a path where one can be created", output, f"{taken} is a file")


def _check_search(objectives: list[str], stop_below: float | None) -> None:
    """Check what a run returns to a search, and when it stops early. Raises: ConfigError."""
    require(bool(objectives), "objectives", "at least one name", objectives)
    for name in objectives:
        require(name in OBJECTIVES, "objectives", f"names among {', '.join(OBJECTIVES)}", name)
    require(stop_below is None or 0 <= stop_below <= 1, "stop_below", "an accuracy from 0 to 1, or null", stop_below)


def _rounds(given: dict[str, Any]) -> dict[str, Round]:
    entries = given.get("rounds")
    require(isinstance(entries, dict), "rounds", "rounds by name, or {} for a single round", entries)
    assert isinstance(entries, dict)
    for name in entries:
        require(re.fullmatch(r"[\w-]+", str(name)) is not None, "rounds", "names made of letters, digits, _ and -", name)
    return {str(name): _round(f"rounds.{name}", entry, given) for name, entry in entries.items()}


def _round(path: str, entry: Any, above: dict[str, Any]) -> Round:
    require(isinstance(entry, dict), path, "what the round changes: pruner, steps or recovery", entry)
    changed = {name: _over(above[name], entry.get(name, {})) for name, _ in components(Round)}
    settings = _scalars(Round, {field.name: above[field.name] for field in fields(Round)} | entry, path)
    part = Round(**settings, **{name: _component(f"{path}.{name}", changed[name], kind) for name, kind in components(Round)})
    part.pruner.check_steps(f"{path}.steps", part.steps)
    return part


def _over(above: Any, entry: Any) -> Any:
    """The component above with the settings that ``entry`` changes; if ``entry`` chooses another component, that one as it is written."""
    if not isinstance(above, dict) or not isinstance(entry, dict) or entry.get("_target_", above["_target_"]) != above["_target_"]:
        return entry
    return _merged(above, entry)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {key: _merged(below[key], value) for key, value in above.items() if isinstance(value, dict) and isinstance(below.get(key), dict)}
    return below | above | both


def _component(path: str, given: Any, kind: type) -> Any:
    part = "recovery" if kind is Training else path.rpartition(".")[2]  # the name of the settings in their own errors
    choice = path if path == part else f"{part}@{path}"
    require(given is None or isinstance(given, dict), path, f"a component; choose one with {choice}=NAME", given)
    target = None if given is None else given.get("_target_")
    if target is None:
        require(kind is Training, path, f"a component with _target_ (a {kind.__name__})", None, f"choose one with {choice}=NAME")
        idle = [] if given is None else [key for key in given if key != "_target_"]
        require(not idle, path, f"a component to set {', '.join(idle)} of", None, f"choose one with {choice}=NAME")
        return None
    chosen = imported(f"{path}._target_", str(target))
    fits = isinstance(chosen, type) and issubclass(chosen, kind) and is_dataclass(chosen)
    require(fits, f"{path}._target_", f"a dataclass derived from {kind.__module__}.{kind.__name__}", target)
    with placed(part, path):
        component = _typed(chosen, {key: value for key, value in given.items() if key != "_target_"}, path)
    if isinstance(component, ModelFamily):
        permit(dict.fromkeys(_names(given)))
    return component


def _names(settings: Mapping[str, Any]) -> Iterator[str]:
    """The names of classes and functions in the settings of a model: those that its files may name."""
    for key, value in settings.items():
        if key in ("_target_", "family", "target"):
            yield str(value)
        elif key == "permit":
            yield from value
        elif isinstance(value, dict):
            yield from _names(value)


@contextmanager
def placed(part: str, path: str) -> Iterator[None]:
    """Errors of settings begin with the name of their ``part``; replace it by the ``path`` at which the settings stand."""
    try:
        yield
    except ConfigError as error:
        if not str(error).startswith(f"{part}."):
            raise
        raise ConfigError(path + str(error).removeprefix(part)) from error


def _typed(kind: type, given: dict[str, Any], path: str) -> Any:
    try:
        merged = OmegaConf.merge(OmegaConf.structured(kind), _with_enums(kind, given, path))
        require_numbers(OmegaConf.to_container(merged), path)
        return OmegaConf.to_object(merged)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{_key(path, error)}: a value is needed and none was given") from error
    except ConfigKeyError as error:
        raise ConfigError(f"{_key(path, error)}: unknown setting{_suggestion(kind, _key(path, error), error)}") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{_key(path, error)}: {str(error.msg or error).splitlines()[0]}") from error


def _with_enums(kind: type, given: Mapping[str, Any], path: str) -> dict[str, Any]:
    """``given`` with the values of enum fields replaced by members: OmegaConf expects the names of members, users write their values."""
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


def _suggestion(kind: type, key: str, error: OmegaConfBaseException) -> str:
    owner = error.object_type if isinstance(error.object_type, type) and is_dataclass(error.object_type) else kind
    known = [field.name for field in fields(owner)]
    near = get_close_matches(str(error.key), known, n=3)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; known are {', '.join(known)}; if an experiment sets it, remove it with '~{key}'"


def as_dict(composed: DictConfig) -> dict[str, Any]:
    """The composed configuration as dictionaries, lists and scalars, for files and trackers."""
    container = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
