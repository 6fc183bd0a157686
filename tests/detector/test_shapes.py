import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detector.data import shapes
from detector.data.coco import fingerprint, read_data
from detector.data.shapes import CLASSES, ShapesSpec, draw_dataset, draw_image

SPEC = ShapesSpec(num_train=6, num_val=3)


@pytest.fixture(scope="module")
def drawings() -> list[shapes.Drawing]:
    return [draw_image(ShapesSpec(), "train", i) for i in range(150)]


def sides(drawings: list[shapes.Drawing]) -> np.ndarray:
    boxes = np.concatenate([d.boxes for d in drawings])
    return boxes[:, 2:] - boxes[:, :2]


# --- files -----------------------------------------------------------------------------------------


def test_the_data_set_reads_as_coco_without_repairs(tmp_path: Path) -> None:
    paths = draw_dataset(SPEC, tmp_path)
    train, val = read_data(paths)
    assert (len(train.images), len(val.images)) == (6, 3)
    assert train.class_names == CLASSES
    assert (train.repairs, val.repairs) == ({}, {})
    for i, record in enumerate(val.images):
        drawing = draw_image(SPEC, "val", i)
        np.testing.assert_allclose(record.boxes, drawing.boxes, atol=1e-4)
        assert record.labels.tolist() == drawing.labels.tolist()
        with Image.open(paths.val.images / record.file_name) as image:
            # JPEG of quality 95: noise changes by a few levels, nothing by many.
            assert np.abs(np.asarray(image).astype(int) - drawing.image).mean() < 4


def test_the_same_spec_elsewhere_is_the_same_data_set(tmp_path: Path) -> None:
    one, two = (read_data(draw_dataset(SPEC, tmp_path / name)) for name in ("one", "two"))
    assert fingerprint(*one) == fingerprint(*two)
    other = read_data(draw_dataset(replace(SPEC, seed=1), tmp_path / "one"))
    assert fingerprint(*one) != fingerprint(*other)


def test_a_second_call_draws_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = draw_dataset(SPEC, tmp_path)
    monkeypatch.setattr(shapes, "draw_image", lambda *_: pytest.fail("drawn again"))
    assert draw_dataset(SPEC, tmp_path) == first


def test_a_half_drawn_directory_is_never_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = shapes.draw_image

    def stop_at_val(spec: ShapesSpec, split: str, index: int) -> shapes.Drawing:
        if split == "val":
            raise KeyboardInterrupt
        return draw(spec, split, index)

    monkeypatch.setattr(shapes, "draw_image", stop_at_val)
    # A killed process cannot tidy up either.
    monkeypatch.setattr(shapes.shutil, "rmtree", lambda *_, **__: None)
    with pytest.raises(KeyboardInterrupt):
        draw_dataset(SPEC, tmp_path)
    assert [path.name.startswith(".shapes-") for path in tmp_path.iterdir()] == [True]
    monkeypatch.undo()
    assert len(read_data(draw_dataset(SPEC, tmp_path))[1].images) == 3


def _draw_in_process(directory: Path, barrier: "multiprocessing.synchronize.Barrier") -> None:
    barrier.wait(60)
    read_data(draw_dataset(SPEC, directory))


@pytest.mark.process
def test_two_processes_may_draw_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    processes = [context.Process(target=_draw_in_process, args=(tmp_path, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"num_val": 0}, "num_val must be >= 1, got 0"),
        ({"min_size": 3.0}, "min_size must be >= 6.0, got 3.0"),
        ({"max_aspect": 0.5}, "max_aspect must be >= 1, got 0.5"),
        ({"max_size": 0.05}, r"max_size must be in \[min_size / image_size, 1\], got 0.05"),
        ({"max_covered": 1.5}, r"max_covered must be in \[0, 1\], got 1.5"),
    ],
)
def test_a_spec_that_cannot_be_drawn_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShapesSpec(**changes)  # type: ignore[arg-type]


# --- what is drawn ---------------------------------------------------------------------------------


def test_an_image_is_the_same_on_every_machine() -> None:
    """Boxes are compared to the last bit: a data set's identity hangs on them.

    Pixels pass through float32 sums whose order depends on the machine, and may differ by a level where
    one falls on the border of rounding; so their mean is compared, and a coarse thumbnail.
    """
    golden = json.loads((Path(__file__).parent / "shapes_golden.json").read_text())
    drawing = draw_image(ShapesSpec(), "train", 3)
    assert drawing.labels.tolist() == golden["labels"]
    assert drawing.boxes.tolist() == golden["boxes"]
    thumbnail = drawing.image.reshape(6, 16, 6, 16, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(thumbnail, golden["thumbnail"], atol=0.1)


def test_splits_and_indices_show_different_images() -> None:
    pixels = [draw_image(SPEC, split, i).image for split, i in (("train", 0), ("val", 0), ("train", 1))]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not np.array_equal(pixels[a], pixels[b])


def test_objects_lie_in_the_image_and_in_number_within_the_spec(drawings: list[shapes.Drawing]) -> None:
    boxes = np.concatenate([d.boxes for d in drawings])
    assert boxes.min() >= 0
    assert boxes.max() <= 96
    assert {len(d.labels) for d in drawings} == set(range(1, 9))


def test_sizes_reach_from_below_the_finest_anchor_to_most_of_the_image(
    drawings: list[shapes.Drawing],
) -> None:
    size = np.sqrt(sides(drawings).prod(axis=1))
    assert size.min() < 9
    assert size.max() > 64
    # Log-uniform from 8 to 82 puts 30 % below 16 and 40 % above 32, less what leaves no room.
    assert 0.2 < (size < 16).mean() < 0.45
    assert 0.25 < (size > 32).mean() < 0.45


def test_aspect_ratios_vary(drawings: list[shapes.Drawing]) -> None:
    ratio = np.divide(*sides(drawings).T)
    assert (ratio > 1.5).mean() > 0.05
    assert (ratio < 1 / 1.5).mean() > 0.05


def test_every_class_is_about_as_frequent(drawings: list[shapes.Drawing]) -> None:
    counts = np.bincount(np.concatenate([d.labels for d in drawings]), minlength=len(CLASSES))
    assert counts.min() > 0.7 * counts.mean()


def test_a_box_bounds_only_what_is_inside_the_image() -> None:
    # Its height falls from 10 at x = 0 to 0 at x = 20. Moved left by 5, it enters an image of side 10
    # with height 7.5 and leaves it at the right; moved by 12, it enters with height 4 and its tip shows.
    triangle = np.array([[0.0, 0], [20, 5], [0, 10]])
    np.testing.assert_allclose(shapes._bounds(triangle - [5, 0], 10), [0, 1.25, 10, 8.75])
    np.testing.assert_allclose(shapes._bounds(triangle - [12, 0], 10), [0, 3, 8, 7])


@pytest.mark.parametrize("label", range(len(CLASSES)), ids=CLASSES)
def test_a_box_is_the_tight_bounds_of_what_is_drawn(label: int) -> None:
    rng = np.random.default_rng(label)
    for _ in range(20):
        outlines = shapes._placed(rng, ShapesSpec(), shapes._OUTLINES[label])
        coverage = shapes._rasterised(outlines, 96)
        image = np.zeros((96, 96))
        image[coverage.region] = coverage.alpha
        x1, y1, x2, y2 = shapes._bounds(outlines[0], 96)
        rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
        drawn = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        # Pixels that the outline touches, so up to one pixel more on each side and none less; a sharp
        # corner may pass between the samples.
        np.testing.assert_allclose(drawn, (x1, y1, x2, y2), atol=1.0 + 1e-6)


def test_no_object_is_hidden_beyond_the_limit() -> None:
    # Two objects of 4 pixels: drawing over 2 of one's leaves half of it, over 3 a quarter.
    owner = np.array([[1, 1, 1, 1], [2, 2, 2, 2]])
    over = {n: shapes._Coverage(np.s_[:1, :n], np.ones((1, n), dtype=np.float32)) for n in (2, 3)}
    assert not shapes._hides_too_much(owner, over[2], [0, 4, 4], 0.5)
    assert shapes._hides_too_much(owner, over[3], [0, 4, 4], 0.5)
    # Object 2 is half hidden already, but not by this.
    assert not shapes._hides_too_much(owner, over[2], [0, 4, 100], 0.5)
