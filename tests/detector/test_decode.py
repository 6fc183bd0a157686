import contextlib
import random
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from detector.data.coco import DataPaths, ImageRecord, read_split
from detector.data.decode import Decoded, Pixels, load_resized, read_upright
from detector.errors import DataError
from detector.geometry.transforms import resized_size

Size = tuple[int, int]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with some noise, as photographs have."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int64)
    noise = generator.integers(-20, 21, smooth.shape)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


def record(name: str, width: int, height: int) -> ImageRecord:
    none: NDArray[np.float64] = np.zeros(0)
    return ImageRecord(
        id=7,
        file_name=name,
        width=width,
        height=height,
        xywh=none.reshape(0, 4),
        labels=none.astype(np.int64),
        areas=none,
        crowd=none.astype(np.bool_),
        difficult=none.astype(np.bool_),
    )


def load(path: Path, described: Size, size: Size) -> Pixels:
    """The file, described as of (width, height), at `size` (height, width)."""
    return load_resized(path.parent, record(path.name, *described), size)


def by_pil(path: Path, size: Size) -> NDArray[np.int64]:
    with Image.open(path) as image:
        resized = image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized).astype(np.int64)


def assert_within_a_level(ours: Pixels, expected: NDArray[np.int64]) -> None:
    assert ours.dtype == np.uint8 and ours.flags.c_contiguous
    np.testing.assert_allclose(ours.astype(np.int64), expected, rtol=0, atol=1)


# --- resizing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(80, 107), (37, 53), (7, 5), (300, 64), (64, 300), (1, 1), (49, 211)])
@pytest.mark.parametrize("original", [(64, 48), (49, 65), (211, 33)])
def test_a_jpeg_is_within_a_level_of_pils_bilinear_resize(tmp_path: Path, original: Size, size: Size) -> None:
    path = tmp_path / "a.jpg"
    picture(*original).save(path, quality=90)
    pixels = load(path, original, size)
    assert pixels.shape == (*size, 3)
    assert_within_a_level(pixels, by_pil(path, size))


@pytest.mark.parametrize(
    "how",
    [
        {"quality": 30},
        {"quality": 100, "subsampling": 0},
        {"subsampling": 1},
        {"progressive": True},
        {"optimize": True},
        {"keep_rgb": True},
        {"restart_marker_blocks": 2},
    ],
    ids=str,
)
def test_every_kind_of_jpeg_is_within_a_level_of_pils(tmp_path: Path, how: dict[str, Any]) -> None:
    path = tmp_path / "a.jpg"
    picture(65, 49).save(path, **how)
    assert_within_a_level(load(path, (65, 49), (80, 106)), by_pil(path, (80, 106)))


def test_a_jpeg_that_has_its_size_keeps_its_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    picture(65, 49).save(path)
    with Image.open(path) as image:
        np.testing.assert_array_equal(load(path, (65, 49), (49, 65)), np.asarray(image))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_other_files_have_exactly_pils_pixels(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    picture(65, 49).save(path)
    np.testing.assert_array_equal(load(path, (65, 49), (80, 107)), by_pil(path, (80, 107)))


def test_the_format_is_that_of_the_bytes_and_not_of_the_name(tmp_path: Path) -> None:
    named_jpeg, named_png = tmp_path / "a.jpg", tmp_path / "a.png"
    image = picture(200, 150)
    image.save(named_jpeg, format="PNG")
    image.save(named_png, format="PNG")
    ours = load(named_jpeg, (200, 150), (211, 280))
    np.testing.assert_array_equal(ours, load(named_png, (200, 150), (211, 280)))


def test_real_photographs_are_within_a_level_of_pils(shared: Path) -> None:
    split = read_split(DataPaths.from_directory(shared / "data" / "coco_mini").val)
    for image in split.images[:20]:
        size = resized_size(image.width, image.height, 800, 1333)
        ours = load_resized(split.source.images, image, size)
        assert_within_a_level(ours, by_pil(split.source.images / image.file_name, size))


# --- colours and orientation -----------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a"
    white = Image.new("RGB", (16, 16), (255, 255, 255)).convert(mode)
    white.save(path, format="TIFF" if mode == "CMYK" else "PNG")
    np.testing.assert_array_equal(load(path, (16, 16), (16, 16)), np.full((16, 16, 3), 255))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_jpeg_without_rgb_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.jpg"
    picture(65, 49).convert(mode).save(path)
    assert_within_a_level(load(path, (65, 49), (80, 107)), by_pil(path, (80, 107)))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_exif_orientation_is_applied_only_where_the_json_says_so(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn a quarter clockwise to view
    picture(32, 16).save(path, exif=exif)
    stored = load(path, (32, 16), (16, 32))
    np.testing.assert_array_equal(stored, by_pil(path, (16, 32)))
    np.testing.assert_array_equal(load(path, (16, 32), (32, 16)), np.rot90(stored, -1))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_an_image_by_itself_is_turned_upright(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(32, 16).save(path, exif=exif)
    turned = read_upright(path)
    assert turned.size == (32, 16)
    np.testing.assert_array_equal(turned.at((32, 16)), np.rot90(by_pil(path, (16, 32)), -1))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_an_image_by_itself_has_the_pixels_that_it_has_in_a_data_set(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    picture(65, 49).save(path)
    np.testing.assert_array_equal(read_upright(path).at((80, 106)), load(path, (65, 49), (80, 106)))


def test_pixels_without_a_file_are_resized_by_pil() -> None:
    image = picture(65, 49)
    expected = np.asarray(image.resize((106, 80), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(Decoded(image).at((80, 106)), expected)


# --- files that cannot be used ---------------------------------------------------------------------


@pytest.mark.parametrize("how", [{}, {"progressive": True}], ids=str)
@pytest.mark.parametrize("missing", [10, 300, 2000])
def test_a_truncated_jpeg_is_refused(tmp_path: Path, missing: int, how: dict[str, Any]) -> None:
    path = tmp_path / "a.jpg"
    picture(96, 96).save(path, quality=95, **how)
    path.write_bytes(path.read_bytes()[:-missing])
    for size in ((96, 96), (80, 80)):
        with pytest.raises(DataError, match=r"/a\.jpg: cannot be decoded \(.*truncated"):
            load(path, (96, 96), size)


def test_a_jpeg_of_another_size_than_the_json_says_is_refused(tmp_path: Path) -> None:
    picture(32, 16).save(tmp_path / "a.jpg")
    message = r"/a\.jpg: is 32x16, but width x height of image id 7 in the JSON is 32x17"
    with pytest.raises(DataError, match=message):
        load(tmp_path / "a.jpg", (32, 17), (80, 80))


def test_more_than_eight_bits_are_refused(tmp_path: Path) -> None:
    Image.new("I;16", (16, 16)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"/a\.png: has more than 8 bits a channel"):
        load(tmp_path / "a.png", (16, 16), (16, 16))


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff\xe0"])
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"/a\.jpg: cannot be decoded"):
        load(tmp_path / "a.jpg", (16, 16), (16, 16))


# --- damaged EXIF ----------------------------------------------------------------------------------

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")


def exif_with(**values: Any) -> Image.Exif:
    exif = Image.Exif()
    for name, value in values.items():
        exif[ExifTags.Base[name].value] = value
    return exif


def exif_bytes(unit: bytes = b"inch") -> bytes:
    """EXIF data with Orientation 6, and ResolutionUnit, a number, as text."""
    entries = struct.pack("<HHI4s", 0x0112, 3, 1, struct.pack("<HH", 6, 0))
    entries += struct.pack("<HHI4s", 0x0128, 2, 4, unit)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_image_is_turned_although_other_exif_data_are_damaged(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    picture(32, 16).save(path, format=kind, exif=exif_bytes())
    assert read_upright(path).size == (32, 16)
    assert load(path, (16, 32), (32, 16)).shape == (32, 16, 3)
    assert load(path, (32, 16), (16, 32)).shape == (16, 32, 3)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_pillow_turns_them(tmp_path: Path, kind: str, orientation: int) -> None:
    path = tmp_path / "a"
    picture(32, 16).save(path, format=kind, exif=exif_with(Orientation=orientation))
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(read_upright(path).at(expected.shape[:2]), expected)


@pytest.mark.parametrize("kind", [*FORMATS, "BMP", "GIF"])
def test_a_damaged_file_is_read_or_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.img"
    options = {"exif": exif_bytes()} if kind in ("JPEG", "PNG", "WEBP") else {}
    picture(32, 16).save(path, format=kind, **options)
    whole, chance = path.read_bytes(), random.Random(kind)
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):  # most of the damage in the head, where EXIF data are
            damaged[chance.randrange(chance.choice((min(200, len(whole)), len(whole))))] = chance.randrange(
                256
            )
        path.write_bytes(damaged[: chance.choice((len(damaged), chance.randrange(len(damaged))))])
        with warnings.catch_warnings(), contextlib.suppress(DataError):
            warnings.simplefilter("ignore")
            assert read_upright(path).image.mode == "RGB"


def test_an_image_of_too_many_pixels_is_to_be_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    picture(32, 16).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"/a\.png: has more than [\d,]+ pixels; cut it into tiles"):
        read_upright(tmp_path / "a.png")
