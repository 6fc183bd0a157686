"""Matching of SSD and RefineDet: a scene by hand, and a naive loop of the authors' rule."""

import pytest
import torch
from torch import Tensor

from detector.geometry.boxes import pairwise_iou
from detector.objectives.bipartite import match_boxes


def match(boxes: list[list[float]], objects: list[list[float]], threshold: float = 0.5) -> list[int]:
    valid = torch.ones(1, len(objects), dtype=torch.bool)
    truth = torch.tensor(objects).view(1, -1, 4)
    return match_boxes(torch.tensor(boxes)[None], truth, valid, threshold)[0].tolist()  # type: ignore[no-any-return]


def test_a_scene_by_hand() -> None:
    boxes = [
        [0.0, 0, 10, 10],  # IoU 1 with the first object
        [0.0, 0, 10, 8],  # 0.8 with the first
        [20.0, 0, 30, 10],  # 1/9 with the second: below the threshold, but its best
        [0.0, 5, 10, 15],  # 1/3 with the first
        [50.0, 50, 60, 60],  # nothing
    ]
    objects = [[0.0, 0, 10, 10], [28.0, 0, 38, 10]]
    assert pairwise_iou(torch.tensor(boxes), torch.tensor(objects))[2, 1] == pytest.approx(1 / 9)
    assert match(boxes, objects) == [0, 0, 1, -1, -1]


def test_an_object_whose_best_box_another_one_takes_gets_its_second_best() -> None:
    boxes = [[0.0, 0, 10, 10], [0.0, 0, 10, 30]]
    # Both overlap the first box most: IoU 0.9 and 0.8. The second object gets the box of IoU 0.8 / 3.
    objects = [[0.0, 0, 10, 8], [0.0, 0, 10, 9]]
    assert match(boxes, objects) == [1, 0]


def test_a_forced_match_stays_where_another_object_overlaps_more() -> None:
    boxes = [[0.0, 0, 10, 10]]
    # The box belongs to the pair of the highest IoU; an object that finds no box stays without.
    assert match(boxes, [[0.0, 0, 10, 6], [0.0, 0, 10, 9]]) == [1]


def test_an_object_that_overlaps_nothing_forces_nothing() -> None:
    assert match([[0.0, 0, 10, 10]], [[10.0, 10, 20, 20]]) == [-1]


def test_an_iou_of_exactly_the_threshold_is_positive() -> None:
    boxes = [[0.0, 0, 10, 10], [0.0, 0, 10, 5], [0.0, 0, 10, 4.9]]
    assert match(boxes, [[0.0, 0, 10, 10]]) == [0, 0, -1]


def test_of_equal_pairs_the_first_box_and_object_are_chosen() -> None:
    box, same = [0.0, 0, 10, 10], [0.0, 0, 10, 20]
    assert match([same, same], [box, box], threshold=0.9) == [0, 1]
    assert match([same], [box, box], threshold=0.9) == [0]


def test_padding_and_images_without_objects_are_negative() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 0, 0]]).expand(2, -1, -1)
    truth = torch.tensor([[[0.0, 0, 10, 10], [0.0, 0, 10, 10]], [[0.0, 0, 10, 10], [0.0, 0, 10, 10]]])
    valid = torch.tensor([[False, True], [False, False]])
    assert match_boxes(boxes, truth, valid, 0.5).tolist() == [[1, -1], [-1, -1]]
    none = match_boxes(boxes, truth[:, :0], valid[:, :0], 0.5)
    assert none.tolist() == [[-1, -1], [-1, -1]] and none.dtype == torch.int64


def naive(iou: Tensor, threshold: float) -> list[int]:
    """The authors' loop, over a (boxes, objects) matrix."""
    num_boxes, num_objects = iou.shape
    found, pool = [-1] * num_boxes, list(range(num_objects))
    while pool:
        best, pair = -1.0, None
        for i in range(num_boxes):
            for j in pool:
                if found[i] == -1 and iou[i, j] > 1e-6 and iou[i, j] > best:
                    best, pair = float(iou[i, j]), (i, j)
        if pair is None:
            break
        found[pair[0]] = pair[1]
        pool.remove(pair[1])
    for i in range(num_boxes):
        row = iou[i].tolist()
        if found[i] == -1 and max(row) >= threshold:
            found[i] = row.index(max(row))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_random_scenes_equal_a_naive_loop(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def boxes(count: int) -> Tensor:
        # Whole numbers make many equal IoUs.
        low = torch.randint(0, 12, (2, count, 2), generator=generator)
        return torch.cat((low, low + torch.randint(3, 9, (2, count, 2), generator=generator)), -1).float()

    anchors, truth = boxes(25), boxes(6)
    valid = torch.rand(2, 6, generator=generator) < 0.8
    found = match_boxes(anchors, truth, valid, 0.4)
    for n in range(2):
        where = valid[n].nonzero().squeeze(1)
        expected = naive(pairwise_iou(anchors[n], truth[n, where]), 0.4) if len(where) else [-1] * 25
        assert found[n].tolist() == [int(where[j]) if j >= 0 else -1 for j in expected]
