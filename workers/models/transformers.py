"""The model family of the vision models of transformers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from workers.checks import require
from workers.errors import ConfigError
from workers.models import hub, library
from workers.models.base import Output

if TYPE_CHECKING:
    from torch import Tensor, nn

FILES = ("*.json", "*.safetensors", "*.bin")  # of a repository on the hub
CODE = {"attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation", "auto_map"}  # of the hub
NOT_SHAPE = CODE | {"transformers_version", "architectures", "dtype", "torch_dtype", "model_type", "_name_or_path", "num_labels"}


@dataclass
class TransformersModel(library.PatternModel):
    """``AutoModelForImageClassification``, or ``AutoModel`` without a classifier, by type and configuration.

    Outputs are tensors: the logits, or else the pooled features, or the first position of the last feature map.

    **Prunable layers.** As in ``TimmModel``; the stem is the first layer in the order of definition, heads are what is beside the backbone.

    **Differs from transformers.** Code that a repository brings along is never run, and backbones inside a model are not downloaded.
    """

    name: str | None  # type of the model, such as vit; null: that of the checkpoint
    arguments: dict[str, Any]  # entries of its configuration
    checkpoint: str | None  # a folder as save_pretrained writes it, a name on the hub, or a file of weights
    include: list[str]
    exclude: list[str]
    stem_and_head: bool
    classifier: bool

    selects: ClassVar[tuple[str, ...]] = ("include", "exclude", "stem_and_head")

    def __post_init__(self) -> None:
        library.check_settings(self.include, self.arguments, ())
        for name in _names_in(self.arguments):
            require(name not in CODE, f"model.arguments.{name}", "an entry that names no code", name)
        require(
            self.name is not None or self.checkpoint is not None,
            "model.name",
            "a type of transformers, such as vit, or null with a folder or a name on the hub as model.checkpoint",
            self.name,
        )

    @property
    def architecture(self) -> str:
        return str(self.name or self.checkpoint)

    @property
    def folder(self) -> Path | None:
        """The folder of the checkpoint, which is fetched from the hub if it is a name there; None if it is a file, or if there is none.

        Raises: ConfigError if it cannot be fetched.
        """
        from workers.models import checkpoints

        if self.checkpoint is None or self.checkpoint.endswith(checkpoints.SUFFIXES):
            return None
        path = Path(self.checkpoint).expanduser()
        return path if path.is_dir() else hub.folder(self.checkpoint, FILES)

    @property
    def stored(self) -> TransformersModel:
        """The family by its whole configuration, which needs no folder."""
        if self.folder is None:
            return self
        configuration = self._configuration()
        entries = {name: value for name, value in configuration.to_diff_dict().items() if name not in NOT_SHAPE}
        labels = {str(number): label for number, label in entries.pop("id2label", {}).items()}
        entries.pop("label2id", None)
        return replace(self, name=configuration.model_type, arguments=entries | ({"id2label": labels} if labels else {}), checkpoint=None)

    def check(self) -> None:
        if self.folder is None:
            super().check()
        self._configuration()

    def build(self) -> nn.Module:
        """Returns the architecture with weights drawn from torch's global generator. Raises: ConfigError for invalid arguments."""
        from workers.models.outputs import returning_tensor

        configuration = self._configuration()
        kind = _models(self.classifier)
        kind._model_mapping.get(type(configuration), None)  # imports the architecture, which takes many calls
        with hub.offline():
            model = library.built(self.architecture, self.arguments, lambda: kind.from_config(configuration, trust_remote_code=False))
        return returning_tensor(model.float())

    def pretrained_state(self) -> dict[str, Tensor] | None:
        """Returns the checkpoint's tensors. Raises: ConfigError if one is missing, has another shape, or is not finite."""
        from workers.models import checkpoints

        if self.folder is None:
            return super().pretrained_state()
        import torch

        kind, where = _models(self.classifier), str(self.checkpoint)
        try:
            loaded = kind.from_pretrained(
                self.folder,
                config=self._configuration(),
                local_files_only=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except Exception as error:  # of any class: of files, of their content, of transformers
            raise ConfigError(f"model.checkpoint: {where} cannot be read: {' '.join(str(error).split())}") from error
        model, info = cast(tuple[Any, dict[str, Any]], loaded)
        lacking = sorted({*info["missing_keys"], *(str(entry) for entry in info["mismatched_keys"])})
        if lacking:
            remedy = "a backbone has no classifier: set model.classifier=false; one for other classes has to be trained first"
            raise ConfigError(f"model.checkpoint: {where} has no tensors that fit {', '.join(lacking[:5])}; {remedy}")
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        checkpoints.require_finite(where, state, model)
        return state

    def pretrained_notes(self) -> list[str]:
        return super().pretrained_notes() if self.folder is None else []

    def weights_fingerprint(self) -> str:
        from workers.files import digest

        if self.folder is None:
            return super().weights_fingerprint()
        files = sorted({path for pattern in FILES for path in self.folder.glob(pattern)})
        return hashlib.sha256(" ".join(f"{path.name} {digest(path)}" for path in files).encode()).hexdigest()

    def heads(self, model: nn.Module) -> set[str]:
        backbone = cast(Any, model).base_model_prefix
        return {name for name, _ in model.named_children() if name != backbone} if self.classifier else set()

    @property
    def output(self) -> Output:
        return Output.LOGITS if self.classifier else Output.FEATURES

    def _configuration(self) -> Any:
        """Returns the configuration of transformers. Raises: ConfigError if there is none of this type, or if an entry is refused."""
        folder, (auto, known) = self.folder, _configurations()
        if folder is None and self.name not in known:
            raise library.unknown(str(self.name), "transformers", list(known.keys()), "transformers.CONFIG_MAPPING")
        from workers.models.bounded import bounded

        def create() -> Any:
            if folder is None:
                return auto.for_model(self.name, **self.arguments)
            return auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **self.arguments)

        try:
            with hub.offline():
                configuration = bounded(create)
        except ConfigError:
            raise
        except Exception as error:  # of any class: of files, of their content, of transformers
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(f"model: transformers has no configuration for {self.architecture}: {reason}") from error
        return _downloads_nothing(configuration)


def _downloads_nothing(configuration: Any) -> Any:
    """Returns the configuration without the wish for a backbone from the hub."""
    parts: tuple[Any, ...] = (configuration, getattr(configuration, "backbone_config", None))
    for part in parts:
        if getattr(part, "use_pretrained_backbone", False):
            part.use_pretrained_backbone = False
    return configuration


def _names_in(entries: dict[str, Any]) -> Iterator[str]:
    """Yields the names of all entries of a configuration and of its parts."""
    for name, value in entries.items():
        yield name
        if isinstance(value, dict):
            yield from _names_in(value)


@cache
def _configurations() -> tuple[Any, Any]:
    """Returns ``AutoConfig`` and the table of all types. Raises: ConfigError if transformers is not installed."""
    try:
        from transformers import CONFIG_MAPPING, AutoConfig
    except ImportError as error:
        raise ConfigError(f"model: it needs the package transformers ({error}): pip install 'secateur[transformers]'") from error
    return AutoConfig, CONFIG_MAPPING


def _models(classifier: bool) -> Any:
    _configurations()
    from transformers import AutoModel, AutoModelForImageClassification

    return AutoModelForImageClassification if classifier else AutoModel
