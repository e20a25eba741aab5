"""Writes the model of a finished run in a format of other libraries.

python -m orchestrator.convert state runs/NAME/model.safetensors model.timm.safetensors
python -m orchestrator.convert folder runs/NAME/model.safetensors FOLDER
python -m orchestrator.convert pt2 runs/NAME/model.safetensors model.pt2 --shape 3 224 224

state: a plain state dict for timm, torchvision, transformers or your own module. folder: as for the Hugging Face hub, with a model card
from the report. pt2: a program of torch.export. For ONNX, repeat the command of the run with onnx=true.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from workers.disks import writing
from workers.errors import SecateurError


def convert(kind: str, model: Path, to: Path, shape: tuple[int, int, int] | None = None, permit: list[str] | None = None) -> None:
    """Writes ``to``. Raises: SecateurError if the model cannot be written in this format."""
    from workers.checks import require
    from workers.models import permitted

    require(model.is_file(), "model", "the model.safetensors of a run", str(model))
    permitted.permit(dict.fromkeys(permit or []))
    if kind == "state":
        from workers.formats import write_state_dict

        write_state_dict(model, to)
    elif kind == "folder":
        _write_folder(model, to)
    else:
        from workers.formats import write_program

        require(shape is not None, "--shape", "channels, height and width of an image", None)
        assert shape is not None
        write_program(model, to, shape)


def _write_folder(model: Path, to: Path) -> None:
    from orchestrator.report.card import model_card
    from workers.export import load_family
    from workers.files import write_text
    from workers.formats import write_folder
    from workers.models.base import Output
    from workers.models.own import OwnModel
    from workers.models.shrunk import ShrunkModel

    library = write_folder(model, to)
    report = model.with_name("report.json")
    family = load_family(model)
    dense = family.dense if isinstance(family, ShrunkModel) else family
    target = dense.target if isinstance(dense, OwnModel) else None
    try:
        content = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else None
        name = content["name"] if content else model.parent.name
        card = model_card(content, library, name, family.output is Output.LOGITS, target)
    except Exception as error:  # of any class: JSON of another shape may fail anywhere
        reason = f"{type(error).__name__}: {error}"
        raise SecateurError(
            f"{report}: expected the report of a run, got a damaged one ({reason}); delete it for a card without it"
        ) from error
    write_text(to / "README.md", card)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.convert", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("kind", choices=("state", "folder", "pt2"))
    parser.add_argument("model", type=Path)
    parser.add_argument("to", type=Path)
    parser.add_argument("--shape", type=int, nargs=3, metavar=("C", "H", "W"), help="of an image, for pt2")
    parser.add_argument("--permit", nargs="*", default=[], metavar="NAME", help="dotted names of your functions that the file may name")
    options = parser.parse_args()
    try:
        with writing(options.to):
            convert(options.kind, options.model, options.to, options.shape and tuple(options.shape), options.permit)
    except SecateurError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"written: {options.to}")


if __name__ == "__main__":
    main()
