from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from detector.data.formats.similar import (
    MAX_DISTANCE,
    image_hash,
    image_hashes,
    similar_across,
    similar_groups,
)
from detector.errors import DataError


def scene(seed: int) -> Image.Image:
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    return coarse.resize((320, 240), Image.Resampling.BICUBIC)


def distance(one: Path, two: Path) -> int:
    return int(np.bitwise_count(image_hash(one) ^ image_hash(two)).sum())


def test_copies_of_another_size_quality_or_format_are_near_and_other_images_far(tmp_path: Path) -> None:
    scene(0).save(tmp_path / "a.png")
    scene(0).save(tmp_path / "b.jpg", quality=40)
    scene(0).resize((160, 120)).save(tmp_path / "c.webp")
    drawn = scene(0)
    ImageDraw.Draw(drawn).ellipse((100, 100, 110, 110), fill="red")
    drawn.save(tmp_path / "d.png")
    for other in ("b.jpg", "c.webp", "d.png"):
        assert distance(tmp_path / "a.png", tmp_path / other) <= MAX_DISTANCE
    scene(1).save(tmp_path / "e.png")
    assert distance(tmp_path / "a.png", tmp_path / "e.png") > 5 * MAX_DISTANCE


def test_groups_are_those_of_all_pairs() -> None:
    generator = np.random.default_rng(0)
    base = generator.integers(0, 2, (40, 256), dtype=np.uint8)
    copies = base[generator.integers(0, 40, 80)].copy()
    for row in copies:
        row[generator.choice(256, generator.integers(0, 2 * MAX_DISTANCE), replace=False)] ^= 1
    bits = np.concatenate((base, copies))
    groups = similar_groups(np.packbits(bits, axis=1))
    near = (bits[:, None] != bits).sum(axis=2) <= MAX_DISTANCE
    for _ in range(7):  # transitive
        near = near @ near
    expected = sorted({tuple(np.flatnonzero(row).tolist()) for row in near if row.sum() > 1})
    assert [tuple(group) for group in groups] == expected


def test_images_of_two_splits_that_look_alike_are_found(tmp_path: Path) -> None:
    for i in range(3):
        scene(i).save(tmp_path / f"train_{i}.png")
        scene(i + 2).save(tmp_path / f"val_{i}.jpg", quality=60)
    splits = [[tmp_path / f"train_{i}.png" for i in range(3)], [tmp_path / f"val_{i}.jpg" for i in range(3)]]
    assert similar_across(splits) == [[(0, 2), (1, 0)]]


def test_real_images_of_different_blood_are_not_alike(shared: Path) -> None:
    paths = sorted((shared / "data" / "bccd").rglob("*.jpg"))
    assert len(similar_groups(image_hashes(paths))) <= 2


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DataError, match=r"/a\.jpg: cannot be decoded"):
        image_hash(tmp_path / "a.jpg")
