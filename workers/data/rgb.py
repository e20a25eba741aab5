"""The conversion of image files of any pixel type to 8-bit RGB."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from workers.data.sources import Source
from workers.errors import SecateurError

BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
WHITE_IS_ZERO, UNSIGNED = 0, 1
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "PPM", "TIFF", "GIF", "JPEG2000")  # none of which runs another program, as EPS does
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
    """Options for reading a file."""

    background: tuple[int, ...]  # behind transparent pixels: 0 to 255 for red, green and blue
    upright: bool  # rotate and mirror by the EXIF orientation, which Pillow always does for TIFF files


def read_rgb(path: str | Source, reading: Reading) -> Image.Image:
    """Returns the image as 8-bit RGB.

    Grey values of more than 8 bits are scaled, not clipped: unsigned integers of up to 16 bits by the range of their bits, floats in [0, 1]
    by 1, all others (32-bit or signed integers, other floats) from the smallest to the largest value of the image. Pillow reads the upper 8
    of 16 bits in colour images. Transparent images are drawn over the background. CMYK is converted by Pillow's formula; colour profiles
    are ignored.
    Raises: SecateurError that names the file if it cannot be read.
    """
    try:
        with Image.open(path if isinstance(path, str) else path.open(), formats=FORMATS) as file:
            file.load()
            image = _rgb(file, reading.background)
            return _turned(image, file) if reading.upright else image
    except Exception as error:  # Pillow raises errors of many types: of the system, of zlib and struct, of sizes and of syntax
        raise SecateurError(
            f"{path}: expected a readable image, got: {reason(error)}; remove or replace the file, or set data.examine=decode to find all "
            "such files before the run and data.broken=skip to leave them out"
        ) from error


def reason(error: Exception) -> str:
    """Returns Pillow's reason in one line, without the path."""
    if isinstance(error, Image.DecompressionBombError):
        return f"more pixels than Pillow's limit of {2 * (Image.MAX_IMAGE_PIXELS or 0)}"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
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
    """Converts an image of one channel with more than 8 bits."""
    tags = file.tag_v2 if file.format == "TIFF" else {}  # type: ignore[attr-defined]
    values_HW, bits = np.asarray(file), int(tags.get(BITS_PER_SAMPLE, (16,))[0])
    unsigned = file.mode != "F" and tags.get(SAMPLE_FORMAT, (UNSIGNED,))[0] == UNSIGNED
    if unsigned and bits == 32:
        values_HW = values_HW.astype(np.int32).view(np.uint32)  # Pillow reads them as signed
    low, high = (0.0, 2.0**bits - 1) if unsigned and bits <= 16 else _range(values_HW)
    grey_HW = (values_HW.astype(np.float64) - low) / (high - low)
    grey_HW = 1 - grey_HW if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else grey_HW
    image = Image.fromarray(np.rint(grey_HW * 255).astype(np.uint8)).convert("RGB")
    transparent = file.info.get("transparency")
    if isinstance(transparent, int):
        image.paste(background, mask=Image.fromarray(np.where(values_HW == transparent, 255, 0).astype(np.uint8)))
    return image


def _range(values_HW: NDArray[np.generic]) -> tuple[float, float]:
    """Returns the values of black and of white."""
    low, high = float(values_HW.min()), float(values_HW.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("pixels that are not finite numbers")
    if values_HW.dtype.kind == "f" and low >= 0 and high <= 1:
        return 0.0, 1.0
    return low, high if high > low else low + 1


def _turned(image: Image.Image, file: Image.Image) -> Image.Image:
    """Returns ``image`` rotated by the EXIF orientation of ``file``; unchanged if the EXIF data cannot be read."""
    try:
        turn = TURNS.get(file.getexif().get(ORIENTATION, 1))
    except Exception:
        return image
    return image if turn is None else image.transpose(turn)
