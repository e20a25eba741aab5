"""Write docs/reference/configuration.md from conf/**/*.yaml and the classes that they configure. `make docs` runs it.

Usage: python scripts/write_configuration_reference.py [--check]        (--check: only say whether the page is up to date)
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass, replace
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
PAGE = ROOT / "docs" / "reference" / "configuration.md"

INTRODUCTION = """\
<!-- Written by scripts/write_configuration_reference.py from conf/**/*.yaml. Change the comments there. -->

# Configuration reference

This page lists every setting, with the default in its yaml file, the type and the choices of its class, and its meaning.
[Configure a run](../how-to/configure.md) explains how to choose parts and override settings.

- `???`: the setting has no default, so you must give a value.
- `null`: no value. The meaning says what happens then.
- `${seed}`: the value of the setting `seed`.
"""

GROUPS = {
    "model": "The architecture, its checkpoint and the layers to prune. Choose one with `model=NAME`.",
    "data": "The images for calibration, training and testing. Choose one with `data=NAME`.",
    "pruner": "The method and its target. Choose one with `pruner=NAME`.",
    "recovery": (
        "How a model is trained. Choose the training of the pruned model with `recovery=NAME` and the training of the dense model with "
        "`recovery@training=NAME`. The settings of the latter are called `training.…`, for example `training.epochs=30`."
    ),
    "cluster": "Where the run is carried out. Choose one with `cluster=NAME`.",
    "tracking": "Where metrics are written. Choose one with `tracking=NAME`.",
    "hydra/launcher": (
        "How the points of a sweep (`--multirun`) are run. By default, one after another in one process. The settings are called "
        "`hydra.launcher.…`."
    ),
    "hydra/sweeper": (
        "How the points of a sweep are chosen. By default, they are all combinations of the values on the command line. The settings are "
        "called `hydra.sweeper.…`."
    ),
}


# Choices whose settings are listed in full; of other choices of the same class, what differs from them.
FULL = ("timm", "ssdlite", "fashion", "imagefolder", "cap", "taylor", "adamw", "ray")
# What is set in code type inside a comment: calls, braces, key=value, names with underscores or dots.
CODE = re.compile(
    r"`[^`]*`|[\w.]+\([\w=.]*\)|[\w.+=]*\{[^}]*\}|[\w./@+-]*[=<][^\s,;]*[^\s,;.:)]|(?<![.\w/])[A-Za-z]\w*(?:[._]\w+)+(?:/[\w.]+)*"
)

WORD = r"\w+(?::\w+)*"
ALTERNATIVES = re.compile(rf"(?<!\S){WORD}(?: \| {WORD})+")  # "error | dense", another way to list what can be chosen


@dataclass(frozen=True)
class Setting:
    """One line of a yaml file. ``value`` is None for a mapping whose settings follow."""

    key: str
    value: str | None
    comment: str


@dataclass(frozen=True)
class Choice:
    """One yaml file of a group."""

    name: str
    comment: str
    target: str | None
    settings: dict[str, Setting]
    values: dict[str, Any]


def read(path: Path) -> Choice:
    """The settings of a yaml file with their comments. A comment may go on in lines of its own below its setting. Its first lines say what
    the choice is."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    settings = {setting.key: setting for setting in _settings(node, lines, "")}
    head = [line.removeprefix("#").strip() for line in lines[: node.start_mark.line]]
    if not any(head):
        sys.exit(f"{path.relative_to(ROOT)}: begin the file with a comment that describes this choice, such as '# Random: masks …'")
    target = settings.pop("_target_", None)
    target_class = None if target is None or target.value == "null" else target.value
    return Choice(path.stem, " ".join(head), target_class, settings, yaml.safe_load(text))


def _settings(node: yaml.MappingNode, lines: list[str], path: str) -> Iterator[Setting]:
    for key, value in node.value:
        name = f"{path}.{key.value}".lstrip(".")
        nested = isinstance(value, yaml.MappingNode) and not value.flow_style
        end = key.end_mark if nested else value.end_mark
        yield Setting(name, None if nested else lines[value.start_mark.line][value.start_mark.column : end.column], _comment(lines, end))
        if nested:
            yield from _settings(value, lines, name)


def _comment(lines: list[str], end: yaml.Mark) -> str:
    _, mark, first = lines[end.line][end.column :].partition("#")
    words = [first.strip()]
    for line in lines[end.line + 1 :]:
        if not mark or not line.strip().startswith("#"):
            break
        words.append(line.strip().removeprefix("#").strip())
    return " ".join(words)


def type_of(kind: type | None, path: str) -> str:
    """The type of a setting, or the words of an enum; "" for keys inside a mapping that is free."""
    hint: Any = kind
    for name in path.split("."):
        if not is_dataclass(hint):
            return ""
        hint = get_type_hints(hint).get(name)
    return _words(hint)


def _words(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return ", ".join(_words(part) for part in get_args(hint) if part is not NoneType) + " or `null`"
    if get_origin(hint) is list:
        return f"list of {_words(get_args(hint)[0])}"
    if get_origin(hint) is dict or hint is dict:
        return "mapping"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return ", ".join(f"`{member.value}`" for member in hint)
    return {int: "integer", float: "number", str: "string", bool: "`true`, `false`"}.get(hint, "")


def table(choice: Choice, kind: type | None) -> list[str]:
    """The settings of a choice. A mapping with free keys is one row, with rows for those of its keys that have a comment."""
    rows = ["| setting | default | type or choices | meaning |", "|---|---|---|---|"]
    for setting in choice.settings.values():
        hint = type_of(kind, setting.key)
        if not hint and not setting.comment:
            continue
        default = _flow(choice.values[setting.key]) if setting.value is None and hint == "mapping" else setting.value
        cells = [f"`{setting.key}`", "" if default is None else f"`{default}`", hint, _in_code(setting.comment, hint)]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000).strip()


def _in_code(comment: str, hint: str) -> str:
    """A comment with its names, values and the words that can be chosen in code type, and a full stop."""
    comment = ALTERNATIVES.sub(lambda found: ", ".join(f"`{word}`" for word in found[0].split(" | ")), comment)
    words = {word.strip("`") for word in re.findall(r"`[^`]*`", hint)} | {"null", "true", "false", "0", "1", "2", "3"}
    text = CODE.sub(lambda found: f"`{found[0].strip('`')}`", comment)
    text = re.sub(r"(?:^|(?<=[:;.] ))\w+(?=[:;]|\.(?!\d)|$)", lambda found: f"`{found[0]}`" if found[0] in words else found[0], text)
    return text if text.endswith(".") or not text else text + "."


def by_class(choices: list[Choice]) -> dict[str, list[Choice]]:
    """Choices of one class together."""
    found: dict[str, list[Choice]] = {}
    for choice in choices:
        found.setdefault(choice.target or "", []).append(choice)
    return found


def _differences(choice: Choice, base: Choice) -> str:
    values = [f"`{key}={setting.value}`" for key, setting in choice.settings.items() if setting.value not in (None, _value(base, key))]
    return ", ".join(values) or "the same settings"


def _value(choice: Choice, key: str) -> str | None:
    return choice.settings[key].value if key in choice.settings else None


def group_lines(group: str, introduction: str) -> list[str]:
    lines = [f"## {group}", "", introduction, ""]
    for target, choices in by_class([read(path) for path in sorted((CONF / group).glob("*.yaml"))]).items():
        base = next((choice for choice in choices if choice.name in FULL), choices[0])
        lines += [f"### {group}={base.name}", "", _in_code(base.comment, ""), ""]
        if target and base.settings:
            lines += [f"Configures `{target}`.", "", *table(base, _class(target)), ""]
        elif target:
            lines += [f"Configures `{target}`, which has no settings.", ""]
        others = [choice for choice in choices if choice is not base]
        if others:
            lines += [f"Other choices of this class, with the settings in which they differ from `{base.name}`:", ""]
            lines += [f"- `{group}={choice.name}`: {_in_code(choice.comment, '')} {_differences(choice, base)}." for choice in others]
            lines.append("")
    return lines


def _class(target: str) -> type:
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def page() -> str:
    from orchestrator.config import Experiment
    from orchestrator.sweep.plugins import register_plugins

    register_plugins()

    run = read(CONF / "config.yaml")
    own = {key: setting for key, setting in run.settings.items() if key.split(".")[0] not in ("defaults", "hydra")}
    lines = [
        INTRODUCTION,
        "## The run",
        "",
        "`conf/config.yaml` chooses one file for each part and holds the settings of the run itself.",
        "",
    ]
    lines += [*table(replace(run, settings=own), Experiment), ""]
    for group, introduction in GROUPS.items():
        lines += group_lines(group, introduction)
    lines += ["## Experiments", "", "An experiment chooses parts and changes settings. Choose one with `+experiment=NAME`.", ""]
    for path in sorted((CONF / "experiment").glob("*.yaml")):
        lines.append(f"- `{path.stem}`: {_in_code(_first_sentences(path), '')}")
    return "\n".join(lines) + "\n"


def _first_sentences(path: Path) -> str:
    """What an experiment's comment says, without what it requires and its commands."""
    words = []
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        if not line.startswith("# ") or line.startswith("#  "):
            break
        words.append(line.removeprefix("# "))
    sentences = re.split(r"(?<=\.) (?=[A-Z0-9])", " ".join(words))
    return " ".join(sentence for sentence in sentences if not sentence.endswith(":"))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if "--check" not in sys.argv:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
        sys.exit(f"{PAGE.relative_to(ROOT)} is stale; run: python scripts/write_configuration_reference.py")
