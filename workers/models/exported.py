"""The model that a run exported, to go on from: whatever is left of it, it is the dense model of the next run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from workers.checks import require
from workers.errors import ConfigError, SecateurError
from workers.models import library
from workers.models.base import Layer, ModelFamily, Output
from workers.models.shrunk import ShrunkModel
from workers.models.widened import WidenedModel

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass
class Exported(ModelFamily):
    """A ``model.safetensors``: family, settings and shapes stand in it, so that only the layers to prune are chosen here.

    Targets are relative to the model in the file. Weights that are masked in it stay zero and count as pruned.
    """

    checkpoint: str | None
    include: list[str]
    exclude: list[str]
    stem_and_head: bool = field(default=False)

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
        """The family that the file was written by, with this choice of layers. Raises: ConfigError if it is no file of ours."""
        from workers.export import load_family
        from workers.files import read_metadata

        require(self.path.is_file(), "model.checkpoint", "an existing file", self.checkpoint, f"looked at {self.path.absolute()}")
        with _told():
            other = "a checkpoint of other origin belongs to its family: model=timm model.name=NAME model.checkpoint=FILE"
            ours = "secateur" in read_metadata(self.path)
            require(ours, "model.checkpoint", "the model.safetensors that a run exported", self.checkpoint, other)
            return selecting(load_family(self.path), {name: getattr(self, name) for name in self.selects})

    @property
    def stored(self) -> ModelFamily:
        """The family inside; a shrunk one becomes the dense family of one that nothing has been taken out of yet."""
        from workers.export import target_of

        inside = self.inside
        return ShrunkModel(None, target_of(inside), asdict(inside), {}) if isinstance(inside, ShrunkModel) else inside

    def check(self) -> None:
        self.inside.check()

    def build(self) -> nn.Module:
        with _told():
            return self.inside.build()

    def layers(self, model: nn.Module) -> list[Layer]:
        return self.inside.layers(model)

    def pretrained_state(self) -> dict[str, Tensor]:
        """The tensors of the file. Raises: ConfigError if they are not those of its architecture, or not finite."""
        from workers.export import load_pruned
        from workers.models import checkpoints

        with _told():
            state = load_pruned(self.path).state_dict()
        checkpoints.require_finite(str(self.checkpoint), state)
        return state

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
    def fixed_size(self) -> int | None:
        return self.inside.fixed_size

    @property
    def output(self) -> Output:
        return self.inside.output


def selecting(family: ModelFamily, selection: dict[str, Any]) -> ModelFamily:
    """``family`` with another choice of layers, as far as it leaves one: values of the fields that ``selects`` names."""
    match family:
        case ShrunkModel():
            return replace(family, settings=asdict(selecting(family.dense, selection)))
        case WidenedModel():
            return replace(family, settings=family.settings | selection)
        case _:
            return replace(family, **{name: value for name, value in selection.items() if name in family.selects})


@contextmanager
def _told() -> Iterator[None]:
    """Errors of reading a file as what they are here: a bad setting."""
    try:
        yield
    except ConfigError:
        raise
    except SecateurError as error:
        raise ConfigError(f"model.checkpoint: {error}") from error
    except library.REFUSALS as error:
        raise ConfigError(f"model.checkpoint: the file's tensors do not fit its spec: {' '.join(str(error).split())}") from error
