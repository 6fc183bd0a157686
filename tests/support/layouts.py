"""One data set written in the layout of each tool whose exports are read.

The writers follow what the tools write, down to the names of their files; images are linked, not copied. Run
as a program, it writes a COCO 2017 data set into folders named after the layouts:

    python -m tests.support.layouts path/to/coco/data FOLDER
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import yaml
from PIL import Image

Coco = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """COCO dictionaries and image folders by split ("train", "val")."""

    splits: Mapping[str, tuple[Coco, Path]]

    @property
    def names(self) -> dict[int, str]:
        return {c["id"]: c["name"] for c in self.splits["train"][0]["categories"]}

    def images(self) -> Iterator[tuple[str, Coco, Path, list[Coco]]]:
        """(split, image, file, annotations) of every image."""
        for split, (coco, folder) in self.splits.items():
            boxes = defaultdict(list)
            for annotation in coco["annotations"]:
                boxes[annotation["image_id"]].append(annotation)
            for image in coco["images"]:
                yield split, image, folder / image["file_name"], boxes[image["id"]]


def read_source(folder: Path) -> Source:
    """A data set in COCO 2017's layout."""
    return Source(
        {
            name: (
                json.loads((folder / "annotations" / f"instances_{name}2017.json").read_text()),
                folder / f"{name}2017",
            )
            for name in ("train", "val")
        }
    )


def small_source(folder: Path, train: int = 6, val: int = 3) -> Source:
    """Pictures of 64 x 48 noise with two whole-numbered boxes each, of classes "cat" and "dog"."""
    generator = np.random.default_rng(0)
    splits = {}
    for name, count in (("train", train), ("val", val)):
        images, annotations = [], []
        (folder / name).mkdir(parents=True)
        for i in range(1, count + 1):
            file_name = f"{name}_{i}.jpg"
            coarse = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
            coarse.resize((64, 48)).save(folder / name / file_name)
            images.append({"id": i, "file_name": file_name, "width": 64, "height": 48})
            for label, box in ((1, [2 + i, 3, 20, 10]), (2, [30, 20 + i, 16, 12])):
                annotations.append(
                    {"id": 2 * i + label, "image_id": i, "category_id": label, "bbox": box,
                     "area": box[2] * box[3], "iscrowd": 0}
                )  # fmt: skip
        categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        coco = {"images": images, "annotations": annotations, "categories": categories}
        splits[name] = (coco, folder / name)
    return Source(splits)


def link(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(file.resolve())


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


# --- COCO JSON -------------------------------------------------------------------------------------


def coco_2017(source: Source, target: Path) -> None:
    for split, (coco, _) in source.splits.items():
        write_json(target / "annotations" / f"instances_{split}2017.json", coco)
    for split, image, file, _ in source.images():
        link(file, target / f"{split}2017" / image["file_name"])


def roboflow(source: Source, target: Path) -> None:
    """Category 0 is the data set's name; ids start at 0 in each split."""
    folders = {"train": "train", "val": "valid"}
    parent = {"id": 0, "name": "things", "supercategory": "none"}
    for split, (coco, _) in source.splits.items():
        categories = [parent, *({**c, "supercategory": "things"} for c in coco["categories"])]
        write_json(target / folders[split] / "_annotations.coco.json", {**coco, "categories": categories})
    for split, image, file, _ in source.images():
        link(file, target / folders[split] / image["file_name"])
    write_text(target / "README.dataset.txt", "things > 2024\n")


def cvat_coco(source: Source, target: Path) -> None:
    for split, (coco, _) in source.splits.items():
        write_json(target / "annotations" / f"instances_{split.title()}.json", coco)
    for split, image, file, _ in source.images():
        link(file, target / "images" / split.title() / image["file_name"])


def joined(source: Source) -> Coco:
    """Both splits as one."""
    images: list[Coco] = []
    annotations: list[Coco] = []
    for _, image, _, boxes in source.images():
        images.append({**image, "id": len(images)})
        annotations += [
            {**box, "image_id": images[-1]["id"], "id": len(annotations) + i} for i, box in enumerate(boxes)
        ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": source.splits["train"][0]["categories"],
    }


def label_studio(source: Source, target: Path) -> None:
    coco = joined(source)
    for image in coco["images"]:
        image["file_name"] = f"images\\{image['file_name']}"
    write_json(target / "result.json", coco)
    for _, image, file, _ in source.images():
        link(file, target / "images" / image["file_name"])


def one_json(source: Source, target: Path) -> None:
    write_json(target / "labels.json", joined(source))
    for _, image, file, _ in source.images():
        link(file, target / "pictures" / image["file_name"])


# --- others ----------------------------------------------------------------------------------------


def voc_xml(image: Coco, boxes: list[Coco], names: Mapping[int, str]) -> str:
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = image["file_name"]
    size = ElementTree.SubElement(root, "size")
    for key in ("width", "height"):
        ElementTree.SubElement(size, key).text = str(image[key])
    for box in boxes:
        item = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(item, "name").text = names[box["category_id"]]
        ElementTree.SubElement(item, "difficult").text = str(box.get("difficult", 0))
        corners = ElementTree.SubElement(item, "bndbox")
        x, y, width, height = box["bbox"]
        for key, value in (("xmin", x + 1), ("ymin", y + 1), ("xmax", x + width), ("ymax", y + height)):
            ElementTree.SubElement(corners, key).text = f"{value:g}"
    return ElementTree.tostring(root, encoding="unicode")


def voc(source: Source, target: Path) -> None:
    stems = defaultdict(list)
    for split, image, file, boxes in source.images():
        stem = Path(image["file_name"]).stem
        stems[split].append(stem)
        write_text(target / "Annotations" / f"{stem}.xml", voc_xml(image, boxes, source.names))
        link(file, target / "JPEGImages" / image["file_name"])
    for split, own in stems.items():
        write_text(target / "ImageSets" / "Main" / f"{split}.txt", "\n".join(own) + "\n")


def voc_beside(source: Source, target: Path) -> None:
    """Roboflow's: XML files beside the images, a folder a split."""
    for split, image, file, boxes in source.images():
        folder = target / {"train": "train", "val": "valid"}[split]
        write_text(folder / f"{Path(image['file_name']).stem}.xml", voc_xml(image, boxes, source.names))
        link(file, folder / image["file_name"])


def yolo_lines(image: Coco, boxes: list[Coco], index: Mapping[int, int]) -> str:
    lines = []
    for box in boxes:
        x, y, width, height = box["bbox"]
        numbers = (
            (x + width / 2) / image["width"], (y + height / 2) / image["height"],
            width / image["width"], height / image["height"],
        )  # fmt: skip
        lines.append(" ".join([str(index[box["category_id"]]), *(f"{number:.9f}" for number in numbers)]))
    return "".join(f"{line}\n" for line in lines)


def yolo(source: Source, target: Path) -> None:
    """Ultralytics': images/train beside labels/train."""
    index = {category: i for i, category in enumerate(sorted(source.names))}
    for split, image, file, boxes in source.images():
        stem = Path(image["file_name"]).stem
        write_text(target / "labels" / split / f"{stem}.txt", yolo_lines(image, boxes, index))
        link(file, target / "images" / split / image["file_name"])
    names = {i: source.names[category] for category, i in index.items()}
    settings = {"path": "../datasets/mine", "train": "images/train", "val": "images/val", "names": names}
    write_text(target / "data.yaml", yaml.safe_dump(settings))


def yolo_roboflow(source: Source, target: Path) -> None:
    """Roboflow's: train/images beside train/labels, with paths that are beside the folder."""
    index = {category: i for i, category in enumerate(sorted(source.names))}
    for split, image, file, boxes in source.images():
        folder = target / {"train": "train", "val": "valid"}[split]
        stem = Path(image["file_name"]).stem
        write_text(folder / "labels" / f"{stem}.txt", yolo_lines(image, boxes, index))
        link(file, folder / "images" / image["file_name"])
    names = [source.names[category] for category in index]
    settings = {"train": "../train/images", "val": "../valid/images", "nc": len(names), "names": names}
    write_text(target / "data.yaml", yaml.safe_dump(settings))


def corners_of(box: Coco) -> list[list[float]]:
    x, y, width, height = box["bbox"]
    return [[x, y], [x + width, y + height]]


def labelme(source: Source, target: Path) -> None:
    for split, image, file, boxes in source.images():
        shapes = [
            {"label": source.names[b["category_id"]], "points": corners_of(b), "shape_type": "rectangle",
             "flags": {}, "group_id": None}
            for b in boxes
        ]  # fmt: skip
        value = {
            "version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": image["file_name"],
            "imageData": None, "imageHeight": image["height"], "imageWidth": image["width"],
        }  # fmt: skip
        write_json(target / split / f"{Path(image['file_name']).stem}.json", value)
        link(file, target / split / image["file_name"])


_RECT = ("name", "x", "y", "width", "height")


def via(source: Source, target: Path) -> None:
    values: defaultdict[str, Coco] = defaultdict(dict)
    for split, image, file, boxes in source.images():
        size = file.stat().st_size
        regions = [
            {"shape_attributes": dict(zip(_RECT, ("rect", *b["bbox"]), strict=True)),
             "region_attributes": {"type": source.names[b["category_id"]]}}
            for b in boxes
        ]  # fmt: skip
        values[split][f"{image['file_name']}{size}"] = {
            "filename": image["file_name"], "size": size, "regions": regions, "file_attributes": {}
        }  # fmt: skip
        link(file, target / split / image["file_name"])
    for split, value in values.items():
        write_json(target / split / "via_region_data.json", value)


def cvat_xml(source: Source, target: Path) -> None:
    root = ElementTree.Element("annotations")
    for i, (split, image, file, boxes) in enumerate(source.images()):
        size = {key: str(image[key]) for key in ("width", "height")}
        element = ElementTree.SubElement(
            root, "image", {"id": str(i), "name": image["file_name"], "subset": split.title(), **size}
        )
        for box in boxes:
            (x1, y1), (x2, y2) = corners_of(box)
            corners = {"xtl": f"{x1:.2f}", "ytl": f"{y1:.2f}", "xbr": f"{x2:.2f}", "ybr": f"{y2:.2f}"}
            ElementTree.SubElement(element, "box", {"label": source.names[box["category_id"]], **corners})
        link(file, target / "images" / image["file_name"])
    write_text(target / "annotations.xml", ElementTree.tostring(root, encoding="unicode"))


SPLIT: dict[str, Callable[[Source, Path], None]] = {
    "coco-2017": coco_2017, "roboflow": roboflow, "cvat-coco": cvat_coco, "voc": voc,
    "voc-beside": voc_beside, "yolo": yolo, "yolo-roboflow": yolo_roboflow, "labelme": labelme,
    "via": via, "cvat-xml": cvat_xml,
}  # fmt: skip
"""Layouts that keep the split."""

UNSPLIT: dict[str, Callable[[Source, Path], None]] = {"label-studio": label_studio, "one-json": one_json}


if __name__ == "__main__":
    for layout, write in (SPLIT | UNSPLIT).items():
        write(read_source(Path(sys.argv[1])), Path(sys.argv[2]) / layout)
