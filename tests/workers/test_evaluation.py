"""Speeds are measured in turn, and answers that changed are counted against the labels."""

import time
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from workers.data.base import Batch
from workers.evaluation import TIMINGS, Pace, changed_answers, of_outputs, outputs, with_loading
from workers.models.base import Output


class Noted(nn.Module):
    """Notes its name at each forward pass."""

    def __init__(self, name: str, calls: list[str]) -> None:
        super().__init__()
        self.name, self.calls = name, calls

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        self.calls.append(self.name)
        return images_NCHW.flatten(1)[:, :3]


def test_models_are_timed_in_turn_on_the_first_batch_and_only_one_is_evaluated():
    calls: list[str] = []
    model, dense = Noted("model", calls), Noted("dense", calls)
    batches = [Batch(torch.rand(4, 1, 2, 2), torch.zeros(4, dtype=torch.long)) for _ in range(3)]
    found = outputs(model, iter(batches), torch.device("cpu"), {"model": model, "dense": dense})
    assert calls == ["model", "dense"] * (1 + TIMINGS) + ["model"] * 3
    assert found.outputs.shape == (12, 3) and len(found.labels) == 12
    assert list(found.speeds) == ["model", "dense"] and min(found.speeds.values()) > 0
    assert outputs(model, iter(batches), torch.device("cpu")).speeds == {}


class Slow(nn.Module):
    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        time.sleep(0.05)
        return images_NCHW.flatten(1)


def test_waiting_for_images_is_told_from_computing() -> None:
    """Images come in 150 ms, a pass takes 50: three quarters of the time of all but the first batch of 8 is spent waiting."""

    def slow_batches() -> Iterator[Batch]:
        for _ in range(4):
            time.sleep(0.15)
            yield Batch(torch.zeros(8, 1, 1, 1), torch.zeros(8, dtype=torch.long))

    pace = outputs(Slow(), slow_batches(), torch.device("cpu")).pace
    assert pace.samples == 24
    speeds = with_loading([pace, Pace()])
    assert speeds["waiting"] == pytest.approx(0.75, abs=0.1)
    assert speeds["loaded_images_per_second"] == pytest.approx(8 / 0.2, rel=0.25)


def test_a_single_batch_says_nothing_about_loading() -> None:
    batch = Batch(torch.zeros(8, 1, 1, 1), torch.zeros(8, dtype=torch.long))
    assert with_loading([outputs(Slow(), iter([batch]), torch.device("cpu")).pace]) == {}


def test_answers_that_changed_are_counted_where_a_label_says_who_is_right():
    """Five samples: both right, lost, gained, both wrong in different ways, no label."""
    labels = torch.tensor([0, 1, 2, 0, -1])
    dense = nn.functional.one_hot(torch.tensor([0, 1, 0, 1, 1]), 3).float()
    pruned = nn.functional.one_hot(torch.tensor([0, 0, 2, 2, 0]), 3).float()
    assert changed_answers(pruned, labels, dense) == {"top1_lost": 1.0, "top1_gained": 1.0}
    metrics = of_outputs(Output.LOGITS, pruned, labels, dense)
    assert metrics["top1"] == 0.5 and metrics["agreement"] == 0.2 and metrics["labelled_samples"] == 4
    assert changed_answers(pruned, torch.full((5,), -1), dense) == {}
