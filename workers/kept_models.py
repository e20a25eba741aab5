"""The models that a worker holds in memory, each read from its file when it is asked for."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from workers.export import load_pruned, load_weight
from workers.files import read_result
from workers.memory import give_back
from workers.models.base import Layer
from workers.precision import Precision, in_precision
from workers.records import LayerSolution, Record

KEPT_MODELS = 2  # to compare takes two


class KeptModels:
    """The last models that were asked for, and the last one that got solutions."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.loaded: dict[Path, nn.Module] = {}  # as they were used, the last one last
        self._solved: tuple[Path, dict[str, Path], nn.Module] | None = None  # the copy with solutions, and where these are stored

    def model(self, path: Path, precision: Precision = Precision.FP32) -> nn.Module:
        """Returns the model of a file, whose products have this precision. Room for it is made before it is loaded."""
        if path not in self.loaded:
            self._solved = None  # of an earlier stage
            for old in list(self.loaded)[: len(self.loaded) - KEPT_MODELS + 1]:
                del self.loaded[old]
            give_back()
            self.loaded[path] = load_pruned(path).to(self.device)
        self.loaded[path] = self.loaded.pop(path)
        return in_precision(self.loaded[path], precision)

    def with_solutions(self, path: Path, solutions: Sequence[Record[LayerSolution]], precision: Precision) -> nn.Module:
        """Returns a copy of a model with the weights of solutions. The last copy is changed if it has solutions for no other layers."""
        if self._solved is None or self._solved[0] != path or not self._solved[1].keys() <= {record.numbers.layer for record in solutions}:
            self._solved = (path, {}, copy.deepcopy(self.model(path)))
        _, placed, model = self._solved
        for record in solutions:
            name = record.numbers.layer
            if placed.get(name) != record.directory:
                parameter = model.get_parameter(f"{name}.weight")
                parameter.data.copy_(read_result(record)["weight_RC"].reshape(parameter.shape))
                placed[name] = record.directory
        return in_precision(model, precision)

    def weight(self, path: Path, layer: Layer) -> Tensor:
        """Returns the weight (R, C) of one layer; nothing else is read unless the model is here already."""
        model = self.loaded.get(path)
        weight = load_weight(path, layer.name) if model is None else model.get_parameter(f"{layer.name}.weight").detach()
        return weight.to(self.device).reshape(layer.rows, layer.columns)
