"""The family of a model that a run exported, which is the dense model of the next run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from workers.checks import absolute_path, require
from workers.errors import ConfigError, SecateurError
from workers.models import library
from workers.models.base import Layer, ModelFamily, Output
from workers.models.shrunk import ShrunkModel
from workers.models.widened import WidenedModel

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass
class Exported(ModelFamily):
    """A ``model.safetensors``, which contains family, settings and shapes, so that only the layers to prune are chosen here.

    Targets are relative to the model in the file. Weights that are masked in it remain zero and count as pruned.
    """

    checkpoint: str | None
    include: list[str]
    exclude: list[str]
    stem_and_head: bool = field(default=False)
    permit: list[str] = field(default_factory=list)  # names of the user's own functions and classes that the file may name

    selects: ClassVar[tuple[str, ...]] = ("include", "exclude", "stem_and_head")

    def __post_init__(self) -> None:
        require(self.checkpoint is not None, "model.checkpoint", "the model.safetensors that a run exported", self.checkpoint)
        library.check_settings(self.include, {}, ())

    @property
    def path(self) -> Path:
        assert self.checkpoint is not None
        return Path(self.checkpoint).expanduser()

    @property
    def inside(self) -> ModelFamily:
        """The family in the file, with this choice of layers. Raises: ConfigError if the file was not exported by a run."""
        from workers.export import load_family
        from workers.files import read_metadata

        assert self.checkpoint is not None
        require(self.path.is_file(), "model.checkpoint", "an existing file", self.checkpoint, absolute_path(self.checkpoint, self.path))
        with _config_errors():
            remedy = "load any other checkpoint with its family: model=timm model.name=NAME model.checkpoint=FILE"
            exported = "secateur" in read_metadata(self.path)
            require(exported, "model.checkpoint", "the model.safetensors that a run exported", self.checkpoint, remedy)
            return selecting(load_family(self.path), {name: getattr(self, name) for name in self.selects})

    @property
    def stored(self) -> ModelFamily:
        """The family in the file. A shrunk family becomes the dense family of a new shrunk one, from which nothing was removed yet."""
        from workers.export import target_of

        inside = self.inside
        return ShrunkModel(None, target_of(inside), asdict(inside), {}) if isinstance(inside, ShrunkModel) else inside

    def check(self) -> None:
        with _config_errors():
            self.inside.check()

    def build(self) -> nn.Module:
        with _config_errors():
            return self.inside.build()

    def layers(self, model: nn.Module) -> list[Layer]:
        return self.inside.layers(model)

    def pretrained_state(self) -> dict[str, Tensor]:
        """Returns the tensors of the file. Raises: ConfigError if they do not fit its architecture or are not finite."""
        from workers.export import load_pruned

        with _config_errors():
            return load_pruned(self.path).state_dict()

    def pretrained_masks(self) -> dict[str, Tensor]:
        from workers.export import load_masks

        return load_masks(self.path)

    def weights_fingerprint(self) -> str:
        from workers.models import checkpoints

        return checkpoints.fingerprint(self.checkpoint)

    @property
    def has_features(self) -> bool:
        return self.inside.has_features

    @property
    def has_loss(self) -> bool:
        return self.inside.has_loss

    @property
    def fixed_size(self) -> int | None:
        return self.inside.fixed_size

    @property
    def output(self) -> Output:
        return self.inside.output


def selecting(family: ModelFamily, selection: dict[str, Any]) -> ModelFamily:
    """Returns ``family`` with another choice of layers: values for the fields that ``selects`` names, as far as it has them."""
    match family:
        case ShrunkModel():
            return replace(family, settings=asdict(selecting(family.dense, selection)))
        case WidenedModel():
            return replace(family, settings=family.settings | selection)
        case _:
            return replace(family, **{name: value for name, value in selection.items() if name in family.selects})


@contextmanager
def _config_errors() -> Iterator[None]:
    """Raises errors of reading the file as ``ConfigError``, since the file is a setting here."""
    try:
        yield
    except ConfigError:
        raise
    except SecateurError as error:
        raise ConfigError(f"model.checkpoint: {error}") from error
    except Exception as error:  # of any class: what a file asks for may fail anywhere
        raise ConfigError(f"model.checkpoint: the file's tensors do not fit its architecture: {' '.join(str(error).split())}") from error
