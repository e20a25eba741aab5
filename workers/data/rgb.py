"""From an image file to 8-bit RGB, whatever the file's pixels are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from workers.errors import SecateurError

BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
WHITE_IS_ZERO, UNSIGNED = 0, 1
ORIENTATION = 274  # tag of EXIF
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Reading(NamedTuple):
    """Choices that a file leaves open."""

    background: tuple[int, ...]  # behind transparent pixels: 0 to 255 for red, green and blue
    upright: bool  # turned and mirrored as the EXIF orientation says. Pillow does so with TIFF files in any case


def read_rgb(path: str, reading: Reading) -> Image.Image:
    """The image as RGB in 8 bits.

    Deeper grey values are scaled, not cut off: unsigned integers of up to 16 bits by what their bits can hold, floats that lie in [0, 1] by
    1, all others (integers of 32 bits, signed ones, wider floats) from the image's own smallest value to its own largest. Of 16 bits a
    channel in colour, Pillow reads the upper 8. Transparent images are laid over the background. CMYK is converted by Pillow's formula;
    colour profiles are ignored.
    Raises: SecateurError naming the file if it cannot be read.
    """
    try:
        with Image.open(path) as file:
            file.load()
            image = _rgb(file, reading.background)
            return _turned(image, file) if reading.upright else image
    except Exception as error:  # Pillow lets errors of many kinds pass: of the system, of zlib and struct, of sizes and of syntax
        raise SecateurError(
            f"{path}: expected a readable image, got: {reason(error)}; remove or replace the file, or find all such "
            "files before the run by data.examine=decode (data.broken=skip leaves them out)"
        ) from error


def reason(error: Exception) -> str:
    """What Pillow says of a file, in one line and without its path."""
    if isinstance(error, Image.DecompressionBombError):
        return f"more pixels than Pillow's limit of {2 * (Image.MAX_IMAGE_PIXELS or 0)}"
    if isinstance(error, Image.UnidentifiedImageError):
        return "no image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _rgb(file: Image.Image, background: tuple[int, ...]) -> Image.Image:
    if file.mode in ("I", "F") or file.mode.startswith("I;16"):
        return _deep(file, background)
    if not file.has_transparency_data:
        return file.convert("RGB")
    over = file.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", over.size, (*background, 255)), over).convert("RGB")


def _deep(file: Image.Image, background: tuple[int, ...]) -> Image.Image:
    """Of one channel of more than 8 bits."""
    tags = file.tag_v2 if file.format == "TIFF" else {}  # type: ignore[attr-defined]
    values_HW, bits = np.asarray(file), int(tags.get(BITS_PER_SAMPLE, (16,))[0])
    unsigned = file.mode != "F" and tags.get(SAMPLE_FORMAT, (UNSIGNED,))[0] == UNSIGNED
    if unsigned and bits == 32:
        values_HW = values_HW.astype(np.int32).view(np.uint32)  # Pillow reads them as signed
    low, high = (0.0, 2.0**bits - 1) if unsigned and bits <= 16 else _own_range(values_HW)
    grey_HW = (values_HW.astype(np.float64) - low) / (high - low)
    grey_HW = 1 - grey_HW if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else grey_HW
    image = Image.fromarray(np.rint(grey_HW * 255).astype(np.uint8)).convert("RGB")
    clear = file.info.get("transparency")
    if isinstance(clear, int):
        image.paste(background, mask=Image.fromarray(np.where(values_HW == clear, 255, 0).astype(np.uint8)))
    return image


def _own_range(values_HW: NDArray[np.generic]) -> tuple[float, float]:
    """The values of black and of white."""
    low, high = float(values_HW.min()), float(values_HW.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("pixels that are no finite numbers")
    if values_HW.dtype.kind == "f" and low >= 0 and high <= 1:
        return 0.0, 1.0
    return low, high if high > low else low + 1


def _turned(image: Image.Image, file: Image.Image) -> Image.Image:
    """``image`` turned as ``file`` says; one whose EXIF cannot be read stays as it is."""
    try:
        turn = TURNS.get(file.getexif().get(ORIENTATION, 1))
    except Exception:
        return image
    return image if turn is None else image.transpose(turn)
