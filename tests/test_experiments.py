"""Every yaml loads, lists every field, and every experiment can be planned without weights, data or device."""

from dataclasses import fields
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from orchestrator.composing import experiment_of
from orchestrator.config import Experiment, components
from orchestrator.launch import plan_experiment
from workers.models.permitted import imported

CONF = Path(__file__).parent.parent / "conf"
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
CHOICES = sorted(
    (group.name, path.stem) for group in CONF.iterdir() if group.is_dir() and group.name != "experiment" for path in group.glob("*.yaml")
)


def composed(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def experiment_named(name: str) -> Experiment:
    return experiment_of([f"+experiment={name}"])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_can_be_planned_without_data_or_weights(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = experiment_named(name)
    try:
        plan = plan_experiment(experiment)
    except Exception as error:
        if "packages that are not installed" in str(error) or "fetch_cases" in str(error):
            pytest.skip(f"needs the packages of `make cases`: {error}")
        raise
    assert plan.seconds > 0 and plan.worker_bytes <= plan.resources.memory_bytes
    assert sorted(name for portion in plan.portions for name in portion) == sorted(planned.layer.name for planned in plan.layers)


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_a_yaml_lists_every_field_of_its_dataclass_and_no_other(group: str, choice: str) -> None:
    key = "recovery" if group == "recovery" else group
    node = composed(f"{key}={choice}")[key]
    if node["_target_"] is None:
        return
    kind = imported(group, node["_target_"])
    assert issubclass(kind, dict(components(Experiment))[key])
    assert {str(name) for name in node} == {field.name for field in fields(kind)} | {"_target_"}


def test_the_headline_experiment_covers_all_of_vit_g_and_fits_its_gpus() -> None:
    """40 blocks of qkv, proj, fc1, fc2 at width 1536 (SwiGLU 2 x 4096): 1536 * (4608 + 1536 + 8192) + 4096 * 1536 weights each."""
    plan = plan_experiment(experiment_named("dino_vitg_50pct"))
    assert len(plan.layers) == 160
    assert plan.profile.prunable_weights == 40 * (1536 * (4608 + 1536 + 8192) + 4096 * 1536)
    assert plan.resources.workers == 8 and plan.worker_bytes <= 80e9
