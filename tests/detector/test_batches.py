"""The images of a training step: the same for any part of the batch; and difficult objects."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detector.config import Augmentation, Detector, Schedule, SquareData, Trial
from detector.data.batches import step_batch
from detector.data.coco import CheckedSplit, ImageRecord, Split
from detector.data.dataset import Batch, SplitImages, open_split, seen_size
from detector.data.sampler import pool_of
from detector.presets import SSD300

SIDE = 40
DATA = SquareData("0" * 12, SIDE)
TRIAL = Trial(Detector(num_classes=2), Schedule(iterations=5, total_batch=7), DATA, seed=5)


@pytest.fixture
def checked(tmp_path: Path) -> CheckedSplit:
    """Five images of 60 x 30 pixels, each with an object, a difficult one and a crowd."""
    folder, r = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    for index in range(5):
        pixels = r.integers(0, 256, (30, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    xywh = np.array([[0.0, 0, 30, 15], [10, 10, 40, 20], [0, 0, 60, 30]])
    records = [
        ImageRecord(
            id=index,
            file_name=f"{index}.png",
            width=60,
            height=30,
            xywh=xywh,
            labels=np.array([0, 1, 0]),
            areas=xywh[:, 2] * xywh[:, 3],
            crowd=np.array([False, True, True]),
            difficult=np.array([False, True, False]),
        )
        for index in range(5)
    ]
    return CheckedSplit(Split(tmp_path / "none.json", folder), tuple(records), (1, 2), ("one", "two"), {})


def opened(checked: CheckedSplit, data: SquareData, name: str = "train") -> SplitImages:
    return open_split(checked, name, data, checked.source.images.parent / "cache")


def batch_of(checked: CheckedSplit, step: int, own: slice, data: SquareData = DATA) -> Batch:
    images, trial = opened(checked, data), replace(TRIAL, data=data)
    return step_batch(images, pool_of(images.records, data), trial, step, own)


def objects(batch: Batch) -> list[tuple[list[list[float]], list[int]]]:
    """Boxes and labels of each image, without padding."""
    rows = zip(batch.boxes_NG4, batch.labels_NG, batch.valid_NG, strict=True)
    return [(boxes[valid].tolist(), labels[valid].tolist()) for boxes, labels, valid in rows]


WHOLE = slice(0, 7)


def test_a_part_of_a_batch_is_that_part_of_the_whole(checked: CheckedSplit) -> None:
    """However many workers share a step, and however few images each takes at a time."""
    for step in range(4):
        whole = batch_of(checked, step, WHOLE)
        parts = [batch_of(checked, step, own) for own in (slice(0, 1), slice(1, 4), slice(4, 7))]
        for name in ("images", "sizes", "image_ids"):
            together = torch.cat([getattr(part, name) for part in parts])
            torch.testing.assert_close(together, getattr(whole, name), rtol=0, atol=0)
        assert [one for part in parts for one in objects(part)] == objects(whole)


def test_a_step_is_the_same_whenever_it_is_asked_for_and_steps_differ(checked: CheckedSplit) -> None:
    first, again, other = (batch_of(checked, step, WHOLE) for step in (3, 3, 4))
    for field in fields(Batch):
        torch.testing.assert_close(getattr(first, field.name), getattr(again, field.name), rtol=0, atol=0)
    assert not torch.equal(first.images, other.images)


def test_an_image_that_is_twice_in_a_batch_is_seen_in_two_ways(checked: CheckedSplit) -> None:
    batch = batch_of(checked, 0, WHOLE)
    ids = batch.image_ids.tolist()
    twice = next(one for one in ids if ids.count(one) > 1)
    one, two = [n for n, own in enumerate(ids) if own == twice][:2]
    assert not torch.equal(batch.images[one], batch.images[two])


def test_augmented_batches_are_squares_with_boxes_inside(checked: CheckedSplit) -> None:
    for step in range(30):
        batch = batch_of(checked, step, WHOLE)
        assert batch.images.shape == (7, 3, SIDE, SIDE) and batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        boxes = batch.boxes_NG4[batch.valid_NG]
        assert (boxes >= 0).all() and (boxes <= SIDE).all() and (boxes[:, 2:] > boxes[:, :2]).all()


PLAIN = Augmentation(distortion=0.0, expansion=0.0, crop_scale=1.0, crop_aspect=1.0, crop_ious=())


def test_a_flip_mirrors_pixels_and_boxes(checked: CheckedSplit) -> None:
    """With a crop of the whole image alone nothing else is left of the augmentation but its filter."""
    straight, flipped = (
        batch_of(checked, 0, WHOLE, replace(DATA, augmentation=PLAIN, flip=flip)) for flip in (0.0, 1.0)
    )
    torch.testing.assert_close(flipped.images, straight.images.flip(3), rtol=0, atol=0)
    # The object of 30 x 15 in 60 x 30 is the upper left quarter, and then the upper right one.
    for batch, corners in ((straight, [0.0, 0.0, 20.0, 20.0]), (flipped, [20.0, 0.0, 40.0, 20.0])):
        assert all(boxes[0] == pytest.approx(corners, abs=1e-4) for boxes, _ in objects(batch))


@pytest.mark.parametrize(("difficult", "labels"), [(True, [0, 1]), (False, [0])])
def test_difficult_objects_are_trained_on_if_the_config_says_so_and_crowds_never(
    checked: CheckedSplit, difficult: bool, labels: list[int]
) -> None:
    for augmentation in (PLAIN, None):
        data = replace(DATA, augmentation=augmentation, difficult=difficult)
        assert [own for _, own in objects(batch_of(checked, 0, WHOLE, data))] == [labels] * 7


def test_without_augmentation_the_whole_image_is_warped_to_the_square(checked: CheckedSplit) -> None:
    data = replace(DATA, augmentation=None, flip=0.0)
    batch = batch_of(checked, 0, WHOLE, data)
    for image, index in zip(batch.images, batch.image_ids.tolist(), strict=True):
        with Image.open(checked.source.images / f"{index}.png") as file:
            expected = np.asarray(file.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_images_are_kept_at_their_own_size_for_augmentation_and_warped_for_tests(
    checked: CheckedSplit,
) -> None:
    train, val = opened(checked, DATA), opened(checked, DATA, "val")
    assert set(train.sizes) == {(30, 60)} and set(val.sizes) == {(SIDE, SIDE)}
    assert train.packed is not None and train.packed[0].shape == (30, 60, 3)
    assert seen_size(DATA, 60, 30) == (SIDE, SIDE)
    other = opened(checked, replace(DATA, side=24))
    assert (other.file == train.file) and opened(checked, replace(DATA, side=24), "val").file != val.file


def test_large_images_are_kept_smaller(checked: CheckedSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detector.data.dataset.MAX_STORED_SIDE", 32)
    train = opened(checked, DATA)
    assert set(train.sizes) == {(16, 32)}
    np.testing.assert_allclose(train.boxes_at(0)[0], [0, 0, 16, 8])


def test_a_detector_of_another_input_than_the_square_is_refused() -> None:
    with pytest.raises(ValueError, match="warped to a side of 40, but input_size is 300"):
        Trial(SSD300, Schedule(), DATA, seed=0)
