from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from detector.data.formats.similar import (
    MAX_DIFFERENCE,
    MAX_DISTANCE,
    similar_across,
    similar_groups,
    thumbnail,
    thumbnails,
)
from detector.errors import DataError


def scene(seed: int) -> Image.Image:
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    return coarse.resize((320, 240), Image.Resampling.BICUBIC)


def saved(folder: Path, **images: Image.Image) -> list[Path]:
    for name, image in images.items():
        image.save(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in images]


def test_copies_of_another_size_quality_format_or_brightness_are_one_group(tmp_path: Path) -> None:
    scene(0).save(tmp_path / "a.png")
    scene(0).save(tmp_path / "b.jpg", quality=40)
    scene(0).resize((160, 120)).save(tmp_path / "c.webp")
    drawn = scene(0)
    ImageDraw.Draw(drawn).ellipse((100, 100, 110, 110), fill="red")
    drawn.save(tmp_path / "d.png")
    scene(0).point(lambda level: min(255, level + 6)).save(tmp_path / "e.png")
    scene(1).save(tmp_path / "other.png")
    assert similar_groups(thumbnails(sorted(tmp_path.iterdir()))) == [[0, 1, 2, 3, 4]]


def test_small_things_at_other_places_of_an_even_background_are_not_similar(tmp_path: Path) -> None:
    images = {}
    for x in (20, 90, 200):
        image = Image.new("RGB", (320, 240), (200, 200, 200))
        ImageDraw.Draw(image).rectangle((x, 100, x + 30, 130), fill=(90, 90, 90))
        images[f"at_{x}"] = image
    assert similar_groups(thumbnails(saved(tmp_path, **images))) == []


def test_groups_are_those_of_all_pairs() -> None:
    generator = np.random.default_rng(0)
    base = generator.integers(0, 200, (40, 16, 17))
    noise = generator.integers(-1, 2, (80, 16, 17)) * generator.integers(0, 20, (80, 1, 1))
    small = np.concatenate((base, base[generator.integers(0, 40, 80)] + noise + 20)).clip(0, 255)
    bits = (np.diff(small, axis=2) > 2).reshape(120, -1)
    level = small.reshape(120, -1) - small.reshape(120, -1).mean(axis=1, keepdims=True).astype(int)
    near = (bits[:, None] != bits).sum(axis=2) <= MAX_DISTANCE
    near &= np.abs(level[:, None] - level).max(axis=2) <= MAX_DIFFERENCE
    for _ in range(7):  # transitive
        near = near @ near
    expected = sorted({tuple(np.flatnonzero(row).tolist()) for row in near if row.sum() > 1})
    assert len(expected) > 5
    assert [tuple(group) for group in similar_groups(small.astype(np.uint8))] == expected


def test_images_of_two_splits_that_look_alike_are_found(tmp_path: Path) -> None:
    for i in range(3):
        scene(i).save(tmp_path / f"train_{i}.png")
        scene(i + 2).save(tmp_path / f"val_{i}.jpg", quality=60)
    splits = [[tmp_path / f"train_{i}.png" for i in range(3)], [tmp_path / f"val_{i}.jpg" for i in range(3)]]
    assert similar_across(splits) == [[(0, 2), (1, 0)]]


def test_real_images_are_like_their_copies_alone(shared: Path, tmp_path: Path) -> None:
    paths = sorted((shared / "data" / "bccd").rglob("*.jpg"))
    for path in paths[:20]:
        with Image.open(path) as image:
            image.resize((image.width // 2, image.height // 2)).save(tmp_path / path.name, quality=50)
    own = len(paths)
    groups = similar_groups(thumbnails([*paths, *sorted(tmp_path.iterdir())]))
    assert groups == [[i, own + i] for i in range(20)]


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DataError, match=r"/a\.jpg: cannot be decoded"):
        thumbnail(tmp_path / "a.jpg")
