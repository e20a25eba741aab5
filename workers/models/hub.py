"""Weights that are fetched once and kept in the caches of the libraries they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from workers.errors import ConfigError

PREFIX = "hf-hub:"
PRETRAINED = "pretrained"  # the checkpoint that a library has released for an architecture
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@cache
def folder(name: str, patterns: tuple[str, ...]) -> Path:
    """Returns a folder with those files of a repository of the hub that match ``patterns``. Raises: ConfigError if it cannot be fetched."""

    def fetch() -> str:
        from huggingface_hub import snapshot_download

        return snapshot_download(name, allow_patterns=list(patterns))

    return Path(_fetched(name, fetch))


@cache
def weights(name: str, files: tuple[str, ...] = WEIGHTS) -> Path:
    """Returns the first of ``files`` that a repository of the hub has. Raises: ConfigError if it cannot be fetched."""

    def fetch() -> str:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        for file in files[:-1]:
            try:
                return hf_hub_download(name, file)
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                continue
        return hf_hub_download(name, files[-1])

    return Path(_fetched(name, fetch))


@cache
def download(url: str) -> Path:
    """Returns a file of the web from torch's cache, where it is put unless it is there. Raises: ConfigError if it cannot be fetched."""

    def fetch() -> str:
        import torch

        path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), progress=False)
        return str(path)

    return Path(_fetched(url, fetch))


@contextmanager
def offline() -> Iterator[None]:
    """A context in which libraries fetch nothing from the hub, whatever a configuration names."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _fetched(name: str, fetch: Callable[[], str]) -> str:
    try:
        return fetch()
    except Exception as error:  # of any class: of the network, of the hub, of the disk
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ConfigError(
            f"model.checkpoint: {name!r} is no file or folder here, and it could not be fetched ({reason.rstrip('.')}); fetch it once "
            "where there is a network, or set model.checkpoint to the path of a copy"
        ) from error
