import dataclasses
import json
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detector.config import Data
from detector.data import dataset
from detector.data.coco import CheckedSplit, DataPaths, Split, read_split
from detector.data.dataset import Batch, SplitImages, load_batch, open_split
from detector.data.loader import prefetched
from detector.errors import DataError

Size = tuple[int, int]
DATA = Data(fingerprint="0" * 12, short_side=16, max_long_side=64)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write(directory: Path, images: Sequence[Image.Image], sizes: Sequence[Size] | None = None) -> Split:
    """A split of PNG files, each with one box of its left half; image 0 has a crowd too."""
    directory.mkdir(parents=True, exist_ok=True)
    sizes = sizes or [image.size for image in images]
    records = [
        {"id": 10 + i, "file_name": f"{i}.png", "width": w, "height": h} for i, (w, h) in enumerate(sizes)
    ]
    annotations = [
        {"id": i, "image_id": 10 + i, "category_id": 1 + i % 2, "bbox": [0, 0, w / 2, h], "iscrowd": 0}
        for i, (w, h) in enumerate(sizes)
    ]
    annotations.append({"id": 99, "image_id": 10, "category_id": 1, "bbox": [1, 1, 2, 2], "iscrowd": 1})
    for i, image in enumerate(images):
        image.save(directory / f"{i}.png")
    categories = [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]
    content = {"images": records, "annotations": annotations, "categories": categories}
    (directory / "instances.json").write_text(json.dumps(content))
    return Split(directory / "instances.json", directory)


def assert_same_batch(ours: Batch, expected: Batch) -> None:
    for field in dataclasses.fields(Batch):
        torch.testing.assert_close(getattr(ours, field.name), getattr(expected, field.name), rtol=0, atol=0)


@pytest.fixture
def checked(tmp_path: Path) -> CheckedSplit:
    return read_split(write(tmp_path / "data", [picture(32, 16), picture(16, 24, 1), picture(16, 16, 2)]))


@pytest.fixture
def packed(checked: CheckedSplit, tmp_path: Path) -> SplitImages:
    return open_split(checked, "train", DATA, tmp_path / "cache")


# --- packing ---------------------------------------------------------------------------------------


def test_images_have_the_pixels_of_pils_bilinear_resize(tmp_path: Path) -> None:
    image = picture(50, 40)
    packed = open_split(read_split(write(tmp_path / "data", [image])), "train", DATA, tmp_path)
    assert packed.sizes == ((16, 20),)
    np.testing.assert_array_equal(packed.at(0), np.asarray(image.resize((20, 16), Image.Resampling.BILINEAR)))
    np.testing.assert_allclose(packed.boxes_at(0), [[0, 0, 10, 16]])
    np.testing.assert_allclose(packed.boxes_at(0, (8, 30)), [[0, 0, 15, 8]])


def test_crowds_are_no_boxes_to_train_on_but_stay_in_the_records(packed: SplitImages) -> None:
    assert [len(packed.boxes_at(i)) for i in range(3)] == [1, 1, 1]
    assert [labels.tolist() for labels in packed.labels] == [[0], [1], [0]]
    assert packed.records[0].crowd.tolist() == [False, True]


def test_pixels_cannot_be_written_to(packed: SplitImages) -> None:
    with pytest.raises(ValueError, match="read-only"):
        packed.at(0)[0, 0, 0] = 1


def test_a_second_opening_decodes_nothing(
    checked: CheckedSplit, packed: SplitImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "_decode_all", lambda *_: pytest.fail("decoded again"))
    again = open_split(checked, "train", DATA, tmp_path / "cache")
    for i in range(3):
        np.testing.assert_array_equal(again.at(i), packed.at(i))


def test_of_two_that_open_a_split_at_once_one_waits_and_decodes_nothing(
    checked: CheckedSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    decode = dataset._decode_all

    def slowly(*arguments: Any) -> None:
        decoded.append("once")
        time.sleep(0.5)
        decode(*arguments)

    monkeypatch.setattr(dataset, "_decode_all", slowly)
    with ThreadPoolExecutor(2) as pool:  # each opens the folder for itself, as a process would
        both = [pool.submit(open_split, checked, "train", DATA, tmp_path / "cache") for _ in range(2)]
    assert decoded == ["once"]
    np.testing.assert_array_equal(both[0].result().at(0), both[1].result().at(0))


def test_a_truncated_file_is_built_again(checked: CheckedSplit, packed: SplitImages, tmp_path: Path) -> None:
    expected = [packed.at(i).copy() for i in range(3)]
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    del packed
    file.unlink()  # not written in place: whoever still maps the old file keeps it
    file.write_bytes(whole[:-1])
    again = open_split(checked, "train", DATA, tmp_path / "cache")
    for i in range(3):
        np.testing.assert_array_equal(again.at(i), expected[i])
    assert file.read_bytes() == whole


def test_every_size_and_data_set_has_its_own_file(checked: CheckedSplit, tmp_path: Path) -> None:
    other = read_split(write(tmp_path / "other", [picture(16, 16)]))
    larger = Data(fingerprint="0" * 12, short_side=24, max_long_side=64)
    cache = tmp_path / "cache"
    for split, data in ((checked, DATA), (other, DATA), (checked, larger)):
        open_split(split, "train", data, cache)
    assert len(list(cache.iterdir())) == 3
    assert open_split(checked, "train", larger, cache).at(2).shape == (24, 24, 3)


def test_what_was_decoded_otherwise_is_not_read_on(
    checked: CheckedSplit, packed: SplitImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (old,) = (tmp_path / "cache").iterdir()
    monkeypatch.setattr(dataset, "PIXELS", dataset.PIXELS + 1)
    open_split(checked, "train", DATA, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert old.is_file()


def _open_in_process(split: Split, cache: Path, barrier: "multiprocessing.synchronize.Barrier") -> None:
    checked = read_split(split)
    barrier.wait(60)
    packed = open_split(checked, "train", DATA, cache)
    assert packed.at(2).shape == (16, 16, 3)


@pytest.mark.process
def test_two_processes_may_build_at_once(checked: CheckedSplit, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    arguments = (checked.source, tmp_path / "cache", barrier)
    processes = [context.Process(target=_open_in_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_images_too_many_to_pack_are_decoded_with_equal_pixels(
    checked: CheckedSplit, packed: SplitImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "MAX_PACKED_BYTES", 100)
    lazy = open_split(checked, "train", DATA, tmp_path / "elsewhere")
    assert [path.suffix for path in (tmp_path / "elsewhere").iterdir()] == [".decodes"]
    for i in range(3):
        np.testing.assert_array_equal(lazy.at(i), packed.at(i))


def test_a_split_once_too_large_is_not_packed_when_room_is_found(
    checked: CheckedSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        full.setattr(dataset, "MAX_PACKED_BYTES", 100)
        open_split(checked, "train", DATA, tmp_path / "cache")
    monkeypatch.setattr(dataset, "_decode_all", lambda *_: pytest.fail("packed"))
    monkeypatch.setattr(dataset, "unusable_images", lambda *_: pytest.fail("decoded again"))
    assert open_split(checked, "train", DATA, tmp_path / "cache").packed is None


# --- images that cannot be used --------------------------------------------------------------------


def test_all_images_that_cannot_be_used_are_listed(tmp_path: Path) -> None:
    split = write(tmp_path / "data", [picture(16, 16, i) for i in range(16)], [(16, 16)] * 15 + [(16, 17)])
    for i in range(12):
        path = split.images / f"{i}.png"
        path.write_bytes(path.read_bytes()[:-100])
    (split.images / "12.png").write_bytes(b"no image")
    Image.new("I;16", (16, 16)).save(split.images / "13.png")
    with pytest.raises(DataError, match=r"instances\.json: cannot be used") as error:
        open_split(read_split(split), "train", DATA, tmp_path / "cache")
    assert error.match(r"images that cannot be used \(15\):")
    for i in range(13):
        assert error.match(rf"/{i}\.png: cannot be decoded")
    assert error.match(r"/13\.png: has more than 8 bits a channel")
    assert error.match(r"/15\.png: is 16x16, but width x height of image id 25 in the JSON is 16x17")
    assert list((tmp_path / "cache").iterdir()) == []


# --- batches ---------------------------------------------------------------------------------------


def test_a_batch_pads_with_zeros_at_the_bottom_and_right(packed: SplitImages) -> None:
    batch = load_batch(packed, [1, 0], [False, False])
    assert batch.images.shape == (2, 3, 24, 32)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.sizes.tolist() == [[24, 16], [16, 32]]
    assert batch.image_ids.tolist() == [11, 10]
    np.testing.assert_array_equal(batch.images[1, :, :16].permute(1, 2, 0), packed.at(0))
    assert batch.images[1, :, 16:].sum() == 0
    assert batch.images[0, :, :, 16:].sum() == 0


def test_boxes_are_padded_and_marked_valid(tmp_path: Path) -> None:
    images = [picture(16, 16), picture(16, 16)]
    split = write(tmp_path / "data", images)
    content = json.loads(split.annotations.read_text())
    del content["annotations"][1]
    content["annotations"].append(
        content["annotations"][0] | {"id": 50, "bbox": [1, 2, 3, 4], "category_id": 2}
    )
    split.annotations.write_text(json.dumps(content))
    packed = open_split(read_split(split), "train", DATA, tmp_path)
    batch = load_batch(packed, [1, 0], [True, True])
    assert batch.valid_NG.tolist() == [[False, False], [True, True]]
    # Left half mirrored is the right half; x 1..4 mirrored in 16 is 12..15; no box stays zeros.
    assert batch.boxes_NG4.tolist() == [[[0] * 4] * 2, [[8, 0, 16, 16], [12, 2, 15, 6]]]
    assert batch.labels_NG.tolist() == [[0, 0], [0, 1]]
    assert (batch.boxes_NG4.dtype, batch.labels_NG.dtype) == (torch.float32, torch.int64)
    assert load_batch(packed, [1], [False]).boxes_NG4.shape == (1, 0, 4)


def test_a_mirrored_image_is_mirrored_within_its_own_width(packed: SplitImages) -> None:
    batch = load_batch(packed, np.array([1, 0]), np.array([True, False]))
    np.testing.assert_array_equal(batch.images[0, :, :, :16].permute(1, 2, 0), packed.at(1)[:, ::-1])
    np.testing.assert_array_equal(batch.images[1, :, :16].permute(1, 2, 0), packed.at(0))
    assert batch.boxes_NG4[0].tolist() == [[8, 0, 16, 24]]
    assert batch.boxes_NG4[1].tolist() == [[0, 0, 16, 16]]


def test_images_and_boxes_of_a_batch_may_have_sizes_of_their_own(
    checked: CheckedSplit, packed: SplitImages
) -> None:
    batch = load_batch(packed, [0, 1], [True, False], sizes=[(8, 20), (24, 16)])
    assert batch.sizes.tolist() == [[8, 20], [24, 16]]
    assert batch.images.shape == (2, 3, 24, 20)
    np.testing.assert_array_equal(batch.images[0, :, :8].permute(1, 2, 0), packed.at(0, (8, 20))[:, ::-1])
    # The left half of 20 pixels, mirrored; image 1 is packed at this size.
    assert batch.boxes_NG4.tolist() == [[[10, 0, 20, 8]], [[0, 0, 8, 24]]]
    np.testing.assert_array_equal(batch.images[1, :, :, :16].permute(1, 2, 0), packed.at(1))


def test_another_size_is_resized_from_the_file_and_not_from_packed_pixels(tmp_path: Path) -> None:
    image = picture(50, 40)
    packed = open_split(read_split(write(tmp_path / "data", [image])), "train", DATA, tmp_path)
    expected = np.asarray(image.resize((30, 24), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(packed.at(0, (24, 30)), expected)


def test_sizes_of_training_given_by_name_change_nothing(packed: SplitImages) -> None:
    implicit = load_batch(packed, [2, 0, 1], [True, False, True], (32, 40))
    explicit = load_batch(
        packed, [2, 0, 1], [True, False, True], (32, 40), [packed.sizes[i] for i in (2, 0, 1)]
    )
    assert_same_batch(implicit, explicit)


def test_boxes_of_the_split_are_those_of_its_batches(packed: SplitImages) -> None:
    batch = load_batch(packed, range(3), [False] * 3)
    np.testing.assert_array_equal(
        batch.boxes_NG4[:, 0], np.concatenate([packed.boxes_at(i) for i in range(3)])
    )
    np.testing.assert_array_equal(batch.labels_NG[:, 0], np.concatenate(packed.labels))


def test_as_many_flips_and_sizes_as_images_are_needed(packed: SplitImages) -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        load_batch(packed, [0, 1], [False])
    with pytest.raises(ValueError, match=r"shorter|longer"):
        load_batch(packed, [0, 1], [False, False], sizes=[(16, 16)])


def test_a_batch_on_the_same_device_is_the_same(packed: SplitImages) -> None:
    batch = load_batch(packed, [0, 1], [False, True])
    assert_same_batch(batch.to("cpu"), batch)


@pytest.mark.gpu
def test_a_batch_on_a_gpu_keeps_its_bytes_and_their_order(packed: SplitImages) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    batch = load_batch(packed, [0, 1], [False, True])
    moved = batch.to("cuda")
    assert moved.images.device.type == moved.boxes_NG4.device.type == "cuda"
    assert moved.images.dtype == torch.uint8
    assert moved.images.is_contiguous(memory_format=torch.channels_last)
    assert_same_batch(moved.to("cpu"), batch)


def test_the_same_batches_come_from_any_number_of_threads(packed: SplitImages) -> None:
    def make(step: int) -> Batch:
        return load_batch(packed, [step % 3, 0], [step % 2 == 0, False], sizes=[(10, 12 + step), (8, 16)])

    inline = list(prefetched(make, range(6), threads=0))
    for threads in (1, 3):
        for ours, expected in zip(prefetched(make, range(6), threads), inline, strict=True):
            assert_same_batch(ours, expected)
    for ours, expected in zip(prefetched(make, range(4, 6), threads=2), inline[4:], strict=True):
        assert_same_batch(ours, expected)


def test_real_images_pack_with_their_boxes_inside(shared: Path, tmp_path: Path) -> None:
    checked = read_split(DataPaths.from_directory(shared / "data" / "coco_mini").val)
    data = Data(fingerprint="0" * 12, short_side=64, max_long_side=107)
    packed = open_split(checked, "val", data, tmp_path)
    batch = load_batch(packed, range(len(packed)), [False] * len(packed))
    heights, widths = batch.sizes.unbind(1)
    limits = torch.stack((widths, heights, widths, heights), dim=1)[:, None]
    assert (batch.boxes_NG4 >= 0).all()
    assert (batch.boxes_NG4 <= limits + 1e-3).all()
    assert (batch.boxes_NG4[..., 2:] > batch.boxes_NG4[..., :2])[batch.valid_NG].all()
    assert int(batch.valid_NG.sum()) == sum(int((~r.crowd).sum()) for r in checked.images)
