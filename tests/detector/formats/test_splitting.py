import random
from collections import Counter
from typing import Any

import pytest

from detector.data.formats.splitting import groups_by_name, split
from detector.errors import DataError

Coco = dict[str, Any]


def content(classes_by_image: list[list[int]]) -> Coco:
    images = [{"id": i, "file_name": f"{i:03}.jpg"} for i in range(len(classes_by_image))]
    annotations = [{"image_id": i, "category_id": c} for i, own in enumerate(classes_by_image) for c in own]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1}, {"id": 2}, {"id": 3}]}


def names(part: Coco) -> set[str]:
    return {image["file_name"] for image in part["images"]}


def test_every_image_and_its_boxes_are_on_one_side() -> None:
    coco = content([[1, 2], [2], [], [1], [3, 3]] * 4)
    parts = split(coco, 0.25, seed=0)
    assert names(parts["train"]) | names(parts["val"]) == names(coco)
    assert not names(parts["train"]) & names(parts["val"])
    for part in parts.values():
        ids = {image["id"] for image in part["images"]}
        assert part["annotations"] == [a for a in coco["annotations"] if a["image_id"] in ids]
        assert part["categories"] == coco["categories"]


def test_rare_classes_are_in_proportion() -> None:
    chance = random.Random(0)
    rare, common = [[1, 3]] * 10, [[1, 2] if chance.random() < 0.5 else [1] for _ in range(190)]
    parts = split(content(rare + common), 0.2, seed=1)
    counts = Counter(a["category_id"] for a in parts["val"]["annotations"])
    assert len(parts["val"]["images"]) == pytest.approx(40, abs=2)
    assert counts[3] == 2
    assert counts[2] == pytest.approx(0.2 * sum(2 in own for own in common), abs=2)


def test_images_without_boxes_are_in_proportion() -> None:
    parts = split(content([[1]] * 50 + [[]] * 50), 0.2, seed=0)
    assert sum(not any(a["image_id"] == i["id"] for a in parts["val"]["annotations"])
               for i in parts["val"]["images"]) == pytest.approx(10, abs=1)  # fmt: skip


def test_a_seed_gives_one_split_in_any_order_of_the_images_and_another_seed_another() -> None:
    coco = content([[1], [2], [1, 3]] * 10)
    shuffled = {**coco, "images": random.Random(5).sample(coco["images"], 30)}
    assert names(split(coco, 0.2, 7)["val"]) == names(split(shuffled, 0.2, 7)["val"])
    assert names(split(coco, 0.2, 7)["val"]) != names(split(coco, 0.2, 8)["val"])


def test_groups_are_never_parted_and_join_where_they_share_an_image() -> None:
    coco = content([[1]] * 30)
    together = [[0, 10, 20], [20, 29], [5, 6]]
    for seed in range(20):
        val = {image["id"] for image in split(coco, 0.3, seed, together)["val"]["images"]}
        assert len(val & {0, 10, 20, 29}) in (0, 4)
        assert len(val & {5, 6}) in (0, 2)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_neither_side_is_ever_empty(share: float, count: int) -> None:
    parts = split(content([[1]] * count), share, seed=0)
    assert parts["train"]["images"] and parts["val"]["images"]


def test_one_group_of_all_images_cannot_be_split() -> None:
    with pytest.raises(DataError, match="3 images all belong together"):
        split(content([[1]] * 3), 0.5, 0, [[0, 1, 2]])


def test_images_of_one_scene_are_grouped_by_their_names() -> None:
    images = [{"id": i, "file_name": name} for i, name in enumerate(["a/7_1.jpg", "a/7_2.jpg", "b/8_1.jpg"])]
    assert groups_by_name(images, r"(\d+)_") == [[0, 1], [2]]
    assert groups_by_name(images, r"^[^/]+") == [[0, 1], [2]]
    with pytest.raises(DataError, match=r"not found in the file name 'a/7_1\.jpg'"):
        groups_by_name(images, "scene")
    with pytest.raises(DataError, match="not a regular expression"):
        groups_by_name(images, "(")
