"""Every setting that changes a result changes the fingerprint of the run: each is changed once, and exceptions are listed."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from identity_cases import changed

from orchestrator.composing import experiment_of
from orchestrator.config import Experiment
from orchestrator.identity.fingerprints import NO_RESULT, latency_fingerprint, run_fingerprint

COMMANDS = {
    "digits": [],
    "weights in patterns": ["pruner=sparsegpt", "pruner.target.pattern='2:4'", "data=fashion"],
    "obc": ["pruner=obc", "data=imagefolder", "data.root=pets", "model=timm", "model.name=resnet18", "recovery=cap_vit"],
    "woodfisher": ["pruner=woodfisher", "data=arrays", "data.path=x.npz", "model=torchvision", "model.name=resnet18"],
    "guided": ["pruner=guided"],
    "masks to a latency": ["pruner=guided", "pruner.target.of=latency", "pruner.target.removed=0.5"],
    "wanda": ["pruner=wanda", "data=photos", "loss=sampled", "steps=2"],
    "magnitude": ["pruner=magnitude", "+experiment=digits_gradual"],
    "units": ["pruner=sosp_i", "+pruner.target.also={memory:0.3}"],
    "random units": ["pruner=unit_random", "compare=false"],
    "latency": ["pruner=halp", "data=coco", "data.root=coco", "model=ssdlite", "model.checkpoint=x", "recovery@training=detector_scratch"],
    "unit magnitude": ["pruner=unit_magnitude", "recovery=none"],
    "taylor in rounds": ["+experiment=fashion_resnet_halp_cap"],
    "int8": ["int8=true", "+experiment=digits_convnext_expand"],
    "own model": ["model=module", "model.target=mine.net", "data=tensors", "data.train_file=a.safetensors", "data.test_file=b.safetensors"],
    "transformers": ["model=transformers", "model.name=vit", "data=shards", "data.train_shards=a.tar", "data.test_shards=b.tar"],
    "hugging face": ["data=huggingface", "data.path=pets"],
    "scenes": ["+experiment=fashion_scenes"],
}


def experiment_named(name: str) -> Experiment:
    return experiment_of(COMMANDS[name])


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all settings below a dataclass, a dict of them, or a value."""
    if is_dataclass(value):
        for field in fields(value):
            if field.name != "rounds" or value.rounds:
                yield from leaves(getattr(value, field.name), (*path, field.name))
    elif isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from leaves(inner, (*path, name))
    else:
        yield path


# Settings that do not change the fingerprint of any run.
IGNORED = {*NO_RESULT}


def is_ignored(experiment: Experiment, path: tuple[str, ...]) -> bool:
    timed = experiment.int8 or any("latency" in str(vars(part.pruner)) for part in experiment.schedule.values())
    if path[0] == "latency" or path == ("cluster", "threads"):  # threads count where latency.threads is null
        return not timed
    if path[0] in ("pruner", "steps", "recovery"):
        return bool(experiment.rounds)  # each round has its own, which the configuration derives from these
    return path[0] in IGNORED


@pytest.mark.parametrize("name", COMMANDS)
def test_the_fingerprint_of_a_run_depends_on_every_setting_that_can_change_a_result(name: str) -> None:
    experiment = experiment_named(name)
    before, paths = run_fingerprint(experiment), list(leaves(experiment))
    assert len(paths) > 60
    for path in paths:
        if path in (("cluster", "device"), ("cluster", "address")):
            continue  # a fingerprint asks the cluster for its devices, so these must exist
        is_equal = run_fingerprint(changed(experiment, path)) == before
        assert is_equal == is_ignored(experiment, path), ".".join(path)


def test_every_pruner_model_and_data_set_that_a_yaml_can_choose_is_covered() -> None:
    conf = Path(__file__).parent.parent.parent / "conf"
    chosen: set[str] = set()
    for name in COMMANDS:
        experiment = experiment_named(name)
        parts = [experiment.model, experiment.data, *(part.pruner for part in experiment.schedule.values())]
        chosen |= {f"{type(part).__module__}.{type(part).__qualname__}" for part in parts}
    for group in ("model", "data", "pruner"):
        targets = {path.read_text(encoding="utf-8").partition("_target_: ")[2].split()[0] for path in (conf / group).glob("*.yaml")}
        missing = targets - chosen
        assert missing <= {"workers.models.exported.Exported"}, group  # it reads a file


def test_two_batch_sizes_with_a_latency_target_are_two_runs() -> None:
    timed = ["pruner=halp", "+experiment=digits"]
    fingerprints = {run_fingerprint(experiment_of([*timed, f"latency.batch_size={size}"])) for size in (1, 32)}
    assert len(fingerprints) == 2
    assert len({run_fingerprint(experiment_of([f"latency.batch_size={size}"])) for size in (1, 32)}) == 1, "nothing is timed"


@pytest.mark.parametrize(
    "setting", ["latency.widths=8", "latency.batch_size=2", "latency.spread=0.1", "latency.seconds=1", "pruner.streams=true"]
)
def test_the_fingerprint_of_a_latency_table_depends_on_how_it_is_measured(setting: str) -> None:
    fingerprints = set()
    for more in ([], [setting]):
        experiment = experiment_of(["pruner=halp", *more])
        fingerprints.add(latency_fingerprint(experiment, experiment.pruner.streams, experiment.cluster.resources()))
    assert len(fingerprints) == 2
