"""Data files that are damaged, or made to do damage: one line, in little time and memory, and no code or program is run."""

import io
import json
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from data_cases import ARRAYS, BASE, FILES
from PIL import Image
from test_data_packed import packed, picture, shards, web

from workers.data.imagefolder import ImageFolder
from workers.data.npz import Arrays
from workers.data.rgb import Reading, read_rgb
from workers.errors import ConfigError, SecateurError

READING = Reading((0, 0, 0), True)
IMAGES = np.zeros((4, 8, 8), np.uint8)
SOUND = {"train_images": IMAGES, "test_images": IMAGES, "train_labels": np.arange(4), "test_labels": np.arange(4)}


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array), allow_pickle=True)
    return file.getvalue()


def header(shape: str, kind: str = "|u1") -> bytes:
    """A ``.npy`` file of which there is nothing but its header."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def npz(path: Path, **changes: Any) -> Path:
    """A file of sound arrays, of which some are replaced by arrays or bytes, or left out."""
    with zipfile.ZipFile(path, "w") as file:
        for name, content in (SOUND | changes).items():
            if content is not None:
                file.writestr(f"{name}.npy", content if isinstance(content, bytes) else npy(content))
    return path


def checked(path: Path) -> Arrays:
    data = Arrays(**BASE | ARRAYS | {"image_size": 8, "path": str(path), "calibration_batches": 1, "shards": 1})
    data.check()
    return data


class Planted:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


BAD_ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "no images": ({"train_images": IMAGES[:0], "train_labels": np.arange(0)}, "train_images): expected N x H x W"),
    "images without pixels": ({"train_images": np.zeros((4, 0, 8), np.uint8)}, "train_images): expected N x H x W"),
    "other names": ({"train_images": None, "pictures": IMAGES}, "expected arrays train_images and test_images, got ['pictures'"),
    "a single number": ({"train_images": np.uint8(3)}, "train_images): expected N x H x W"),
    "images of text": ({"train_images": np.array(["a"] * 4)}, "train_images): expected N x H x W"),
    "complex images": ({"train_images": np.zeros((4, 8, 8), complex)}, "train_images): expected N x H x W"),
    "floats from 0 to 255": (dict.fromkeys(("train_images", "test_images"), np.full((4, 8, 8), 255.0)), "floats in [0, 1], got 255"),
    "a shape that no memory holds": ({"train_images": header("(1000000, 1000000, 1000000)")}, "a readable .npz file"),
    "a shape beyond 64 bits": ({"train_images": header(f"({10**30}, 8, 8)")}, "a readable .npz file"),
    "a negative shape": ({"train_images": header("(-4, 8, 8)")}, "a readable .npz file"),
    "a nested header": ({"train_images": header("(" * 110)}, "a readable .npz file"),
    "an expression for a shape": ({"train_images": header("(10**9,)")}, "a readable .npz file"),
    "pixels that are missing": ({"train_images": npy(IMAGES)[:-1]}, "a readable .npz file"),
    "an empty member": ({"train_images": b""}, "a readable .npz file"),
    "no array": ({"train_images": b"words"}, "a readable .npz file"),
    "negative labels": (
        {"train_labels": np.array([0, 1, -1, 2])},
        "train_labels): expected 4 integers of at least 0, one for each image, got",
    ),
    "labels in fractions": ({"train_labels": np.arange(4) / 2}, "got float64 (4,) from 0.0 to 1.5"),
    "labels in words": ({"train_labels": np.array(["cat"] * 4)}, "train_labels): expected 4 integers"),
    "too few labels": ({"train_labels": np.arange(3)}, "train_labels): expected 4 integers"),
    "labels in columns": ({"train_labels": np.zeros((4, 1), int)}, "train_labels): expected 4 integers"),
    "labels beyond 32 bits": ({"train_labels": np.full(4, 2**63, np.uint64)}, "train_labels): expected 4 integers"),
    "labels of one split": ({"test_labels": None}, "labels for both splits"),
    "boxes of no class": (
        {"train_labels": None, "test_labels": None} | dict.fromkeys(("train_boxes", "test_boxes"), np.full((4, 1, 5), np.nan)),
        "classes that are whole numbers",
    ),
    "boxes of half a class": (
        {"train_labels": None, "test_labels": None} | dict.fromkeys(("train_boxes", "test_boxes"), np.full((4, 1, 5), 0.5)),
        "classes that are whole numbers",
    ),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_are_no_images_and_labels_are_refused(case: str, tmp_path: Path) -> None:
    changes, words = BAD_ARRAYS[case]
    with pytest.raises(ConfigError) as refused:
        checked(npz(tmp_path / "a.npz", **changes))
    assert words in str(refused.value) and "\n" not in str(refused.value), str(refused.value)


def test_arrays_that_expand_beyond_the_memory_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in SOUND.items():
            file.writestr(f"{name}.npy", npy(content))
        file.getinfo("train_images.npy").file_size = 1 << 50  # as a bomb says, and as one does that lies
    before = psutil.Process().memory_info().rss
    with pytest.raises(ConfigError, match=r"expected arrays that fit into the .* GB of free memory, got 1\.13e\+06 GB in .*bomb"):
        checked(path)
    assert psutil.Process().memory_info().rss - before < 1e8


def test_a_member_with_more_than_it_says_is_read_as_far_as_it_says(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in SOUND.items():
            file.writestr(f"{name}.npy", npy(content) + (bytes(50_000_000) if name == "train_images" else b""))
        file.getinfo("train_images.npy").file_size = len(npy(IMAGES))
    with pytest.raises(ConfigError, match=r"a readable \.npz file.*Bad CRC"):
        checked(path)


def test_pickles_in_arrays_are_not_opened(tmp_path: Path) -> None:
    planted = np.array([Planted(tmp_path / "planted")] * 4, dtype=object)
    for path in (npz(tmp_path / "a.npz", train_labels=planted), tmp_path / "b.npz"):
        if not path.exists():
            path.write_bytes(pickle.dumps(Planted(tmp_path / "planted")))
        with pytest.raises(ConfigError, match=r"readable \.npz file of numeric arrays"):
            checked(path)
    assert not (tmp_path / "planted").exists()


def test_members_that_are_not_used_are_not_read(tmp_path: Path) -> None:
    assert checked(npz(tmp_path / "a.npz", notes=b"words", more=np.array([Planted(tmp_path / "planted")], dtype=object))).classes == 4
    assert not (tmp_path / "planted").exists()


def test_no_length_of_a_cut_file_gives_more_than_one_line(tmp_path: Path) -> None:
    whole, cut = npz(tmp_path / "a.npz").read_bytes(), tmp_path / "cut.npz"
    for length in [*range(0, len(whole) - 22, 61), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ConfigError, match=r"expected a readable \.npz file") as refused:
            checked(cut)
        assert "\n" not in str(refused.value)


# --- images


def png(width: int, height: int) -> bytes:
    """A PNG that says so many pixels, all of which are black: a small file of a large image."""
    chunks = {b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0), b"IDAT": zlib.compress(bytes(100_000)), b"IEND": b""}
    parts = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks.items()]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_images_that_are_bombs_or_programs_are_one_line_each(tmp_path: Path) -> None:
    script = (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(" + str(tmp_path / "planted").encode() + b") (w) file closefile\nshowpage\n"
    )
    bad = {
        "bomb": (png(100_000, 100_000), "more pixels than Pillow's limit"),
        "empty": (b"", "not an image"),
        "cut": (picture(3)[:60], ""),
        "script": (script, "not an image"),
        "page": (b"<html><script>alert(1)</script></html>", "not an image"),
        "zip": (npz(tmp_path / "a.npz").read_bytes(), "not an image"),
    }
    for name, (content, words) in bad.items():
        path = tmp_path / f"{name}.png"
        path.write_bytes(content)
        with pytest.raises(SecateurError, match=f"{name}.png: expected a readable image, got: .*{words}") as refused:
            read_rgb(str(path), READING)
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "planted").exists()
    polyglot = tmp_path / "polyglot.png"
    polyglot.write_bytes(picture(3) + bad["zip"][0])
    assert read_rgb(str(polyglot), READING).tobytes() == read_rgb(str(written(tmp_path / "plain.png", picture(3))), READING).tobytes()


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_all_bad_images_of_a_folder_are_listed_in_one_line(tmp_path: Path) -> None:
    for split in ("train", "val"):
        written(tmp_path / "root" / split / "cat" / "sound.png", picture(3))
    for name, content in {"bomb.png": png(100_000, 100_000), "empty.jpg": b"", "cut.png": picture(3)[:60], "page.bmp": b"<html>"}.items():
        written(tmp_path / "root" / "train" / "cat" / name, content)
    data = ImageFolder(**BASE | FILES | {"root": str(tmp_path / "root"), "calibration_batches": 1, "shards": 1})
    with pytest.raises(ConfigError, match="got 4 that cannot") as refused:
        data.settled(None, tmp_path / "cache", lambda count: None)
    assert all(name in str(refused.value) for name in ("bomb.png: more pixels", "empty.jpg: not", "cut.png", "page.bmp: not"))
    assert "\n" not in str(refused.value)
    for cache in (tmp_path / "cache").glob("*.json"):  # what is known of these files is checked, too
        known = json.loads(cache.read_text()) if cache.stat().st_size else {}
        cache.write_text(json.dumps({key: {} if isinstance(value, dict) else value for key, value in known.items()}))
    with pytest.raises(ConfigError, match="got 4 that cannot"):
        data.settled(None, tmp_path / "cache", lambda count: None)


# --- tar files


def test_members_of_tar_files_are_read_in_place_whatever_their_names_are(tmp_path: Path) -> None:
    """Nothing is extracted, so names that lead elsewhere are only names, and links lead nowhere."""
    names = ["../../0.png", "/etc/1.png", "a/../2.png", "C:\\3.png"]
    outside = written(tmp_path / "outside.png", picture(9))
    for file in ("train-00.tar", "train-01.tar", "test.tar"):
        with tarfile.open(tmp_path / file, "w") as tar:
            for number, name in enumerate(names):
                for ending, content in ((".png", picture(number)), (".cls", b"1")):
                    entry = tarfile.TarInfo(name.removesuffix(".png") + ending)
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                link = tarfile.TarInfo(f"link{kind!r}.png")
                link.type, link.linkname = kind, str(outside)
                tar.addfile(link)
            fifo = tarfile.TarInfo("fifo.png")
            fifo.type = tarfile.FIFOTYPE
            tar.addfile(fifo)
    before = sorted(tmp_path.rglob("*"))
    data = shards(tmp_path)
    data.check()
    assert [member.name for member in data.files("test")] == names
    (batch,) = data.evaluation("test", 0, 1)
    (sound,) = shards(plain(tmp_path / "plain")).evaluation("test", 0, 1)
    assert batch.images_NCHW.equal(sound.images_NCHW)
    assert sorted(path for path in tmp_path.rglob("*") if "plain" not in str(path)) == before


def plain(folder: Path) -> Path:
    folder.mkdir()
    for file in ("train-00.tar", "train-01.tar", "test.tar"):
        packed(folder / file, web(range(4)))
    return folder


def test_damaged_tar_files_are_one_line(tmp_path: Path) -> None:
    folder = plain(tmp_path / "shards")
    whole, path = (folder / "test.tar").read_bytes(), folder / "test.tar"
    huge = tarfile.TarInfo("huge.png")
    huge.size = 1 << 50
    long = tarfile.TarInfo("x")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 1 << 50
    pax = tarfile.TarInfo("y")
    pax.type, pax.size = tarfile.XHDTYPE, 1 << 50
    deep = b"[" * 100_000
    bad = {
        "empty": b"",
        "cut": whole[:700],
        "zeros": bytes(10_000),
        "a size beyond the file": huge.tobuf() + bytes(1024),
        "a name of any length": long.tobuf() + bytes(1024),
        "a header of any length": pax.tobuf() + bytes(1024),
        "many names": long.tobuf(tarfile.GNU_FORMAT)[:0] + b"".join(named().tobuf(tarfile.GNU_FORMAT) + bytes(512) for _ in range(3000)),
        "a nested label": packed(tmp_path / "a.tar", {"0.png": picture(0), "0.json": deep}).read_bytes(),
        "a label that is no text": packed(tmp_path / "a.tar", {"0.png": picture(0), "0.cls": b"\xff\xfe"}).read_bytes(),
        "a negative label": packed(tmp_path / "a.tar", {"0.png": picture(0), "0.cls": b"-3"}).read_bytes(),
        "a label in words": packed(tmp_path / "a.tar", {"0.png": picture(0), "0.json": b'{"label": "cat"}'}).read_bytes(),
    }
    for case, content in bad.items():
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"data\.test_shards: expected") as refused:
            shards(folder).check()
        assert "\n" not in str(refused.value), case


def named() -> tarfile.TarInfo:
    """The header of a long name, which another long name follows."""
    entry = tarfile.TarInfo("z")
    entry.type, entry.size = tarfile.GNUTYPE_LONGNAME, 512
    return entry


def test_a_broken_image_in_a_shard_names_the_shard_and_the_member(tmp_path: Path) -> None:
    folder = plain(tmp_path / "shards")
    for content in (png(100_000, 100_000), b"", picture(0)[:60]):
        packed(folder / "test.tar", web(range(4)) | {"0000.png": content})
        with pytest.raises(SecateurError, match=r"test\.tar: 0000\.png: expected a readable image") as refused:
            list(shards(folder).evaluation("test", 0, 1))
        assert "\n" not in str(refused.value)


def test_pictures_of_the_usual_formats_are_read(tmp_path: Path) -> None:
    for ending in ("png", "jpg", "bmp", "ppm", "tif", "webp", "gif"):
        Image.new("RGB", (8, 8), (200, 0, 0)).save(tmp_path / f"a.{ending}")
        assert read_rgb(str(tmp_path / f"a.{ending}"), READING).getpixel((3, 3))[0] > 190
