"""Speeds are measured in turn, and answers that changed are counted against the labels."""

import torch
from torch import nn

from workers.data.base import Batch
from workers.evaluation import TIMINGS, changed_answers, of_outputs, outputs
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
    rows, labels, speeds = outputs(model, iter(batches), torch.device("cpu"), {"model": model, "dense": dense})
    assert calls == ["model", "dense"] * (1 + TIMINGS) + ["model"] * 3
    assert rows.shape == (12, 3) and len(labels) == 12 and list(speeds) == ["model", "dense"] and min(speeds.values()) > 0
    assert outputs(model, iter(batches), torch.device("cpu"))[2] == {}


def test_answers_that_changed_are_counted_where_a_label_says_who_is_right():
    """Five samples: both right, lost, gained, both wrong in different ways, no label."""
    labels = torch.tensor([0, 1, 2, 0, -1])
    dense = nn.functional.one_hot(torch.tensor([0, 1, 0, 1, 1]), 3).float()
    pruned = nn.functional.one_hot(torch.tensor([0, 0, 2, 2, 0]), 3).float()
    assert changed_answers(pruned, labels, dense) == {"top1_lost": 1.0, "top1_gained": 1.0}
    metrics = of_outputs(Output.LOGITS, pruned, labels, dense)
    assert metrics["top1"] == 0.5 and metrics["agreement"] == 0.2 and metrics["labelled_samples"] == 4
    assert changed_answers(pruned, torch.full((5,), -1), dense) == {}
