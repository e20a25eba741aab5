"""The values of pixels of every type, against files that are written here byte by byte."""

import struct
import zlib

import numpy as np
import pytest
from data_cases import folder, joined
from PIL import Image

from workers.data.imagefiles import Augmentation
from workers.data.rgb import Reading, read_rgb
from workers.errors import ConfigError, SecateurError

WHITE = Reading((255, 255, 255), upright=True)
RAMP_HW = np.linspace(0, 1, 12).reshape(3, 4)


def write_png(path, values, depth, colour, extra=b""):
    """``values`` as big-endian integers of ``depth`` bits; ``extra``: chunks before the pixels."""
    rows = values.reshape(len(values), -1).astype(">u2" if depth == 16 else ">u1")
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def write_tiff(path, values, photometric=1, order="<"):
    """One strip of one type: unsigned, signed or float by the array's."""
    values = values.astype(values.dtype.newbyteorder(order))
    channels = values.shape[2] if values.ndim == 3 else 1
    bits, kind = 8 * values.dtype.itemsize, {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    data = values.tobytes()
    each = struct.pack(f"{order}{channels}H", *[bits] * channels)
    tags = [(256, values.shape[1]), (257, values.shape[0]), (258, bits), (259, 1), (262, photometric), (273, 8), (277, channels)]
    tags += [(278, values.shape[0]), (279, len(data)), (339, kind)]
    long = {256, 257, 273, 278, 279}
    entries = b""
    for tag, value in tags:
        many = channels > 1 and tag == 258
        field = (
            struct.pack(f"{order}I", 8 + len(data))
            if many
            else struct.pack(f"{order}I" if tag in long else f"{order}HH", value, *([] if tag in long else [0]))
        )
        entries += struct.pack(f"{order}HHI", tag, 4 if tag in long else 3, channels if many else 1) + field
    start = 8 + len(data) + len(each)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    path.write_bytes(head + data + each + struct.pack(f"{order}H", len(tags)) + entries + b"\0\0\0\0")


def grey(path, reading=WHITE):
    """The image in [0, 1]; its channels have to be equal."""
    pixels_HWC = np.asarray(read_rgb(str(path), reading), float) / 255
    assert np.array_equal(pixels_HWC[..., 0], pixels_HWC[..., 1]) and np.array_equal(pixels_HWC[..., 0], pixels_HWC[..., 2])
    return pixels_HWC[..., 0]


def colours(path, reading=WHITE):
    return np.asarray(read_rgb(str(path), reading), float)


CLOSE = {"rtol": 0, "atol": 0.51 / 255}


def test_16_bit_grey_pngs_and_pgms_are_scaled_by_the_range_of_16_bits(tmp_path):
    values_HW = (RAMP_HW * 65535).round()
    write_png(tmp_path / "a.png", values_HW, 16, 0)
    (tmp_path / "a.pgm").write_bytes(b"P5\n4 3\n65535\n" + values_HW.astype(">u2").tobytes())
    for name in ("a.png", "a.pgm"):
        np.testing.assert_allclose(grey(tmp_path / name), RAMP_HW, **CLOSE)
    write_png(tmp_path / "dim.png", values_HW / 4, 16, 0)
    np.testing.assert_allclose(grey(tmp_path / "dim.png"), RAMP_HW / 4, **CLOSE)


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_tiffs_are_scaled_by_the_range_of_16_bits(tmp_path, order):
    write_tiff(tmp_path / "a.tif", (RAMP_HW * 65535).round().astype(np.uint16), order=order)
    np.testing.assert_allclose(grey(tmp_path / "a.tif"), RAMP_HW, **CLOSE)


def test_where_zero_is_white_deep_tiffs_are_turned_over(tmp_path):
    write_tiff(tmp_path / "a.tif", (RAMP_HW * 65535).round().astype(np.uint16), photometric=0)
    write_tiff(tmp_path / "b.tif", RAMP_HW.astype(np.float32), photometric=0)
    for name in ("a.tif", "b.tif"):
        np.testing.assert_allclose(grey(tmp_path / name), 1 - RAMP_HW, **CLOSE)


@pytest.mark.parametrize(
    ("values_HW", "expected_HW"),
    [
        ((RAMP_HW * (2**31 - 1)).astype(np.int32), RAMP_HW),
        ((RAMP_HW * 4000 - 1000).astype(np.int32), RAMP_HW),
        ((RAMP_HW * 65535).astype(np.int32), RAMP_HW),
        ((RAMP_HW * (2**32 - 1)).astype(np.uint32), RAMP_HW),
        ((RAMP_HW * 1000 - 500).astype(np.int16), RAMP_HW),
        (RAMP_HW.astype(np.float32), RAMP_HW),
        ((RAMP_HW / 2 + 0.1).astype(np.float32), RAMP_HW / 2 + 0.1),
        ((RAMP_HW * 255).astype(np.float32), RAMP_HW),
        ((RAMP_HW * 6 - 3).astype(np.float32), RAMP_HW),
        (np.full((3, 4), 7, np.int32), np.zeros((3, 4))),
    ],
    ids=[
        "int32",
        "int32 with negatives",
        "int32 of 16 bits",
        "uint32",
        "int16",
        "float",
        "float half",
        "float to 255",
        "float wide",
        "flat",
    ],
)
def test_deep_tiffs_span_black_to_white_and_floats_in_0_to_1_are_not_scaled(tmp_path, values_HW, expected_HW):
    write_tiff(tmp_path / "a.tif", values_HW)
    np.testing.assert_allclose(grey(tmp_path / "a.tif"), expected_HW, rtol=0, atol=1.01 / 255)


def test_floats_that_are_not_finite_are_named(tmp_path):
    write_tiff(tmp_path / "a.tif", np.where(RAMP_HW == 1, np.nan, RAMP_HW).astype(np.float32))
    with pytest.raises(SecateurError, match=r"a.tif: .*not finite"):
        read_rgb(str(tmp_path / "a.tif"), WHITE)


def test_16_bits_a_channel_in_colour_keep_their_upper_8(tmp_path):
    values_HWC = (np.random.default_rng(0).random((3, 4, 3)) * 65535).round()
    write_png(tmp_path / "a.png", values_HWC, 16, 2)
    write_tiff(tmp_path / "a.tif", values_HWC.astype(np.uint16), photometric=2)
    for name in ("a.png", "a.tif"):
        np.testing.assert_allclose(colours(tmp_path / name), values_HWC / 257, atol=1)


BLUE = Reading((0, 0, 200), upright=True)


def laid_over(colour_HWC, alpha_HW1, background):
    return colour_HWC * alpha_HW1 + np.array(background) * (1 - alpha_HW1)


@pytest.mark.parametrize("depth", [8, 16])
def test_transparent_pngs_are_laid_over_the_background(tmp_path, depth):
    draw, top = np.random.default_rng(0), 2**depth - 1
    rgb_HWC, alpha_HW1 = draw.random((5, 6, 3)), draw.random((5, 6, 1)).round(1)
    write_png(tmp_path / "rgba.png", (np.concatenate([rgb_HWC, alpha_HW1], 2) * top).round(), depth, 6)
    write_png(tmp_path / "la.png", (np.concatenate([rgb_HWC[..., :1], alpha_HW1], 2) * top).round(), depth, 4)
    for reading in (WHITE, BLUE):
        expected = laid_over(rgb_HWC * 255, alpha_HW1, reading.background)
        np.testing.assert_allclose(colours(tmp_path / "rgba.png", reading), expected, atol=2)
        expected = laid_over(rgb_HWC[..., :1].repeat(3, 2) * 255, alpha_HW1, reading.background)
        np.testing.assert_allclose(colours(tmp_path / "la.png", reading), expected, atol=2)


def test_one_clear_colour_and_clear_entries_of_a_palette_show_the_background(tmp_path):
    """Of grey in 8 and in 16 bits, of colour, and of a palette whose entries have an alpha each."""
    values_HW = np.array([[0, 1], [2, 3]])
    write_png(tmp_path / "grey8.png", values_HW, 8, 0, chunk(b"tRNS", struct.pack(">H", 2)))
    write_png(tmp_path / "grey16.png", values_HW * 257, 16, 0, chunk(b"tRNS", struct.pack(">H", 514)))
    for name in ("grey8.png", "grey16.png"):
        assert colours(tmp_path / name, BLUE).tolist() == [[[0] * 3, [1] * 3], [[0, 0, 200], [3] * 3]]
    write_png(tmp_path / "rgb.png", np.array([[[9, 8, 7], [1, 2, 3]]]), 8, 2, chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3)))
    assert colours(tmp_path / "rgb.png", BLUE).tolist() == [[[9, 8, 7], [0, 0, 200]]]
    palette = chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60, 70, 80, 90])) + chunk(b"tRNS", bytes([255, 0, 128]))
    write_png(tmp_path / "palette.png", np.array([[0, 1, 2]]), 8, 3, palette)
    actual = colours(tmp_path / "palette.png", BLUE)
    np.testing.assert_allclose(actual, [[[10, 20, 30], [0, 0, 200], [35, 40, 145]]], atol=1)


def test_the_background_is_a_setting_of_the_data_and_part_of_its_identity(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        write_png(tmp_path / split / "clear.png", np.zeros((20, 20, 4)), 8, 6)
    seen = {}
    for name, background in {"white": [1.0], "red": [1.0, 0.0, 0.0]}.items():
        data = folder(tmp_path, background=background, mean=[0.0], std=[1.0], augmentation=Augmentation.NONE)
        seen[name] = joined(data.evaluation("test", 0, 1))[0].mean((0, 2, 3)).tolist(), data.fingerprint()
    assert seen["white"][0] == [1, 1, 1] and seen["red"][0] == [1, 0, 0] and seen["white"][1] != seen["red"][1]
    assert folder(tmp_path, upright=False).fingerprint() != folder(tmp_path).fingerprint()
    with pytest.raises(ConfigError, match=r"data.background: expected 1 or 3 numbers in \[0, 1\]"):
        folder(tmp_path, background=[255.0])


def test_a_folder_of_16_bit_images_gives_the_batches_of_the_same_images_in_8_bits(tmp_path):
    values_HW = np.random.default_rng(0).integers(0, 256, (20, 24))
    for name, depth in (("deep", 16), ("plain", 8)):
        for split in ("train", "val"):
            (tmp_path / name / split).mkdir(parents=True)
            write_png(tmp_path / name / split / "0.png", values_HW * (257 if depth == 16 else 1), depth, 0)
    deep, plain = (joined(folder(tmp_path / name).evaluation("test", 0, 1))[0] for name in ("deep", "plain"))
    assert deep.std() > 0.5 and (deep == plain).all()


def test_cmyk_is_light_times_the_transmission_of_the_inks(tmp_path):
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 0, 0], [0, 0, 255, 0], [0, 0, 0, 255], [128, 0, 0, 128]]], np.uint8)
    Image.fromarray(np.ascontiguousarray(inks.repeat(16, 0).repeat(16, 1)), "CMYK").save(tmp_path / "a.jpg", quality=100, subsampling=0)
    Image.fromarray(inks, "CMYK").save(tmp_path / "a.tif")
    expected = (255 - inks[..., :3].astype(float)) * (255 - inks[..., 3:].astype(float)) / 255
    np.testing.assert_allclose(colours(tmp_path / "a.tif"), expected, atol=1)
    np.testing.assert_allclose(colours(tmp_path / "a.jpg")[8:9, 8::16], expected, atol=4)


UPRIGHT = np.array([[0, 50, 100], [150, 200, 250]])
STORED = {  # how a camera stores UPRIGHT under each orientation of EXIF: where its first row and its first column are
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],  # top, right
    3: UPRIGHT[::-1, ::-1],  # bottom, right
    4: UPRIGHT[::-1],  # bottom, left
    5: UPRIGHT.T,  # left, top
    6: UPRIGHT.T[::-1],  # right, top
    7: UPRIGHT.T[::-1, ::-1],  # right, bottom
    8: UPRIGHT.T[:, ::-1],  # left, bottom
}


@pytest.mark.parametrize("orientation", STORED)
def test_images_are_rotated_by_exif_unless_they_are_read_as_stored(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    stored = STORED[orientation].astype(np.uint8)
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert (grey(tmp_path / "a.png") * 255).round().tolist() == UPRIGHT.tolist()
    assert (grey(tmp_path / "a.png", WHITE._replace(upright=False)) * 255).round().tolist() == stored.tolist()
    Image.fromarray(np.ascontiguousarray(stored.repeat(16, 0).repeat(16, 1))).save(tmp_path / "a.jpg", exif=exif, quality=100)
    np.testing.assert_allclose(grey(tmp_path / "a.jpg")[8::16, 8::16] * 255, UPRIGHT, atol=2)
