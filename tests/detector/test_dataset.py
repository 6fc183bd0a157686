import json
import multiprocessing
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detector import dataset
from detector.coco import CheckedSplit, DataPaths, Split, read_split
from detector.config import Data
from detector.dataset import PackedImages, load_batch, open_packed
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


@pytest.fixture
def checked(tmp_path: Path) -> CheckedSplit:
    return read_split(write(tmp_path / "data", [picture(32, 16), picture(16, 24, 1), picture(16, 16, 2)]))


@pytest.fixture
def packed(checked: CheckedSplit, tmp_path: Path) -> PackedImages:
    return open_packed(checked, "train", DATA, tmp_path / "cache")


# --- packing ---------------------------------------------------------------------------------------


def test_images_have_the_pixels_of_pils_bilinear_resize(tmp_path: Path) -> None:
    image = picture(50, 40)
    packed = open_packed(read_split(write(tmp_path / "data", [image])), "train", DATA, tmp_path)
    assert packed.sizes == ((16, 20),)
    np.testing.assert_array_equal(packed[0], np.asarray(image.resize((20, 16), Image.Resampling.BILINEAR)))
    np.testing.assert_allclose(packed.boxes[0], [[0, 0, 10, 16]])


def test_crowds_are_no_boxes_to_train_on_but_stay_in_the_records(packed: PackedImages) -> None:
    assert [len(boxes) for boxes in packed.boxes] == [1, 1, 1]
    assert [labels.tolist() for labels in packed.labels] == [[0], [1], [0]]
    assert packed.records[0].crowd.tolist() == [False, True]


def test_pixels_cannot_be_written_to(packed: PackedImages) -> None:
    with pytest.raises(ValueError, match="read-only"):
        packed[0][0, 0, 0] = 1


def test_a_second_opening_decodes_nothing(
    checked: CheckedSplit, packed: PackedImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "_decode_all", lambda *_: pytest.fail("decoded again"))
    again = open_packed(checked, "train", DATA, tmp_path / "cache")
    for i in range(3):
        np.testing.assert_array_equal(again[i], packed[i])


def test_a_truncated_file_is_built_again(checked: CheckedSplit, packed: PackedImages, tmp_path: Path) -> None:
    expected = [packed[i].copy() for i in range(3)]
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    del packed
    file.unlink()  # not written in place: whoever still maps the old file keeps it
    file.write_bytes(whole[:-1])
    again = open_packed(checked, "train", DATA, tmp_path / "cache")
    for i in range(3):
        np.testing.assert_array_equal(again[i], expected[i])
    assert file.read_bytes() == whole


def test_every_size_and_data_set_has_its_own_file(checked: CheckedSplit, tmp_path: Path) -> None:
    other = read_split(write(tmp_path / "other", [picture(16, 16)]))
    larger = Data(fingerprint="0" * 12, short_side=24, max_long_side=64)
    cache = tmp_path / "cache"
    for split, data in ((checked, DATA), (other, DATA), (checked, larger)):
        open_packed(split, "train", data, cache)
    assert len(list(cache.iterdir())) == 3
    assert open_packed(checked, "train", larger, cache)[2].shape == (24, 24, 3)


def _open_in_process(split: Split, cache: Path, barrier: "multiprocessing.synchronize.Barrier") -> None:
    checked = read_split(split)
    barrier.wait(60)
    packed = open_packed(checked, "train", DATA, cache)
    assert packed[2].shape == (16, 16, 3)


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
    checked: CheckedSplit, packed: PackedImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "MAX_PACKED_BYTES", 100)
    lazy = open_packed(checked, "train", DATA, tmp_path / "elsewhere")
    assert [path.suffix for path in (tmp_path / "elsewhere").iterdir()] == [".decodes"]
    for i in range(3):
        np.testing.assert_array_equal(lazy[i], packed[i])


# --- pixels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    split = write(tmp_path, [picture(16, 16)])
    grey = Image.new("RGB", (16, 16), (255, 255, 255)).convert(mode)
    grey.save(tmp_path / "0.png", format="TIFF" if mode == "CMYK" else "PNG")
    packed = open_packed(read_split(split), "train", DATA, tmp_path / "cache")
    np.testing.assert_array_equal(packed[0], np.full((16, 16, 3), 255))


def _save_turned(path: Path, image: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn a quarter clockwise to view
    image.save(path, exif=exif)


def test_exif_orientation_is_applied_only_where_the_json_says_so(tmp_path: Path) -> None:
    image = picture(32, 16)
    as_stored = write(tmp_path / "stored", [image])
    as_viewed = write(tmp_path / "viewed", [image], sizes=[(16, 32)])
    for split in (as_stored, as_viewed):
        _save_turned(split.images / "0.png", image)
    stored = open_packed(read_split(as_stored), "train", DATA, tmp_path)
    viewed = open_packed(read_split(as_viewed), "train", DATA, tmp_path)
    np.testing.assert_array_equal(stored[0], np.asarray(image))
    np.testing.assert_array_equal(viewed[0], np.rot90(np.asarray(image), -1))


# --- images that cannot be used --------------------------------------------------------------------


def test_all_images_that_cannot_be_used_are_listed(tmp_path: Path) -> None:
    split = write(tmp_path / "data", [picture(16, 16, i) for i in range(16)], [(16, 16)] * 15 + [(16, 17)])
    for i in range(12):
        path = split.images / f"{i}.png"
        path.write_bytes(path.read_bytes()[:-100])
    (split.images / "12.png").write_bytes(b"no image")
    Image.new("I;16", (16, 16)).save(split.images / "13.png")
    with pytest.raises(DataError, match=r"instances\.json: cannot be used") as error:
        open_packed(read_split(split), "train", DATA, tmp_path / "cache")
    assert error.match(r"images that cannot be used \(15\):")
    for i in range(13):
        assert error.match(rf"/{i}\.png: cannot be decoded")
    assert error.match(r"/13\.png: has more than 8 bits a channel")
    assert error.match(r"/15\.png: is 16x16, but width x height of image id 25 in the JSON is 16x17")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_truncated_jpeg_is_refused(tmp_path: Path) -> None:
    split = write(tmp_path / "data", [picture(64, 64)])
    path = split.images / "0.png"
    picture(64, 64).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"/0\.png: cannot be decoded \(.*truncated"):
        open_packed(read_split(split), "train", DATA, tmp_path / "cache")


# --- batches ---------------------------------------------------------------------------------------


def test_a_batch_pads_with_zeros_at_the_bottom_and_right(packed: PackedImages) -> None:
    batch = load_batch(packed, [1, 0], [False, False])
    assert batch.images.shape == (2, 3, 24, 32)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.sizes.tolist() == [[24, 16], [16, 32]]
    assert batch.image_ids.tolist() == [11, 10]
    np.testing.assert_array_equal(batch.images[1, :, :16].permute(1, 2, 0), packed[0])
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
    packed = open_packed(read_split(split), "train", DATA, tmp_path)
    batch = load_batch(packed, [1, 0], [True, True])
    assert batch.valid_NG.tolist() == [[False, False], [True, True]]
    # Left half mirrored is the right half; x 1..4 mirrored in 16 is 12..15; no box stays zeros.
    assert batch.boxes_NG4.tolist() == [[[0] * 4] * 2, [[8, 0, 16, 16], [12, 2, 15, 6]]]
    assert batch.labels_NG.tolist() == [[0, 0], [0, 1]]
    assert (batch.boxes_NG4.dtype, batch.labels_NG.dtype) == (torch.float32, torch.int64)
    assert load_batch(packed, [1], [False]).boxes_NG4.shape == (1, 0, 4)


def test_a_mirrored_image_is_mirrored_within_its_own_width(packed: PackedImages) -> None:
    batch = load_batch(packed, np.array([1, 0]), np.array([True, False]))
    np.testing.assert_array_equal(batch.images[0, :, :, :16].permute(1, 2, 0), packed[1][:, ::-1])
    np.testing.assert_array_equal(batch.images[1, :, :16].permute(1, 2, 0), packed[0])
    assert batch.boxes_NG4[0].tolist() == [[8, 0, 16, 24]]
    assert batch.boxes_NG4[1].tolist() == [[0, 0, 16, 16]]


def test_real_images_pack_with_their_boxes_inside(shared: Path, tmp_path: Path) -> None:
    checked = read_split(DataPaths.from_directory(shared / "data" / "coco_mini").val)
    data = Data(fingerprint="0" * 12, short_side=64, max_long_side=107)
    packed = open_packed(checked, "val", data, tmp_path)
    batch = load_batch(packed, range(len(packed)), [False] * len(packed))
    heights, widths = batch.sizes.unbind(1)
    limits = torch.stack((widths, heights, widths, heights), dim=1)[:, None]
    assert (batch.boxes_NG4 >= 0).all()
    assert (batch.boxes_NG4 <= limits + 1e-3).all()
    assert (batch.boxes_NG4[..., 2:] > batch.boxes_NG4[..., :2])[batch.valid_NG].all()
    assert int(batch.valid_NG.sum()) == sum(int((~r.crowd).sum()) for r in checked.images)
