"""Modules and data of a user, outside of the project's packages."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional


class SmallNet(nn.Module):
    """Convolutions and Linears for images of 8 x 8 pixels."""

    def __init__(self, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.second = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.hidden = nn.Linear(2 * width * 16, 32)
        self.last = nn.Linear(32, classes)
        self.register_buffer("shift", torch.full((1,), 0.5), persistent=False)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        maps = functional.max_pool2d(self.second(self.first(images_NCHW - self.shift).relu()).relu(), 2)
        return self.last(self.hidden(maps.flatten(1)).relu())


def build(width: int = 16, classes: int = 10) -> nn.Module:
    return SmallNet(width, classes)


def squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    return functional.mse_loss(outputs, labels)


def digits() -> tuple[Tensor, Tensor]:
    """Images in [0, 1] and their classes."""
    content = load_digits()
    return torch.tensor(content.images, dtype=torch.float32)[:, None] / 16, torch.tensor(content.target)


def batches(start: int, stop: int, size: int = 64) -> list[tuple[Tensor, Tensor]]:
    images, labels = digits()
    return [(images[n : min(n + size, stop)], labels[n : min(n + size, stop)]) for n in range(start, stop, size)]


def train(model: nn.Module, epochs: int, optimizer: torch.optim.Optimizer) -> None:
    for _ in range(epochs):
        for images, labels in batches(0, 1400):
            optimizer.zero_grad()
            functional.cross_entropy(model(images), labels).backward()
            optimizer.step()


def accuracy(model: nn.Module) -> float:
    images, labels = digits()
    with torch.no_grad():
        return float((model(images[1400:]).argmax(1) == labels[1400:]).double().mean())


def trained(epochs: int = 4) -> SmallNet:
    torch.manual_seed(0)
    model = SmallNet()
    train(model, epochs, torch.optim.AdamW(model.parameters(), 2e-3))
    return model.eval()
