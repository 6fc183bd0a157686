"""Numbers of the paper and of its authors' released code, packed so that they travel with the project.

The authors' code (github sfzhang15/ATSS, commit 79dfb28b) ran on a CPU in float32 on seeded synthetic boxes.
Its legacy "+1 pixel" was set to 0: a width is x2 - x1, and an anchor of 8 strides is 8 strides wide. The
archive holds its numbers alone, no code and no image:

    img_NN.npz       boxes of one image, and for every rule the match of each anchor (ground truth's index, -1
                     negative, -2 ignored), regression targets, thresholds, and flags of ties
    loss_A, loss_B   inputs (npz), losses and gradients (json) of two batches
    anchors, coders_iou, elementwise, postproc, voting, data_lr (npz), model_stats (json)
    paper_tables.json   what the paper reports in each table, and the differences of its claims

`python -m tests.support.golden FOLDER` packs them anew from such files.
"""

import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ARCHIVE = Path(__file__).parents[1] / "data" / "golden.tar.xz"
UNREAD = ("__ctr", "topk_box__reg", "same_match_as_norm")
"""Endings of arrays that no test reads."""


def unpack(folder: Path) -> None:
    """Writes the committed files into a folder."""
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            content = archive.extractfile(member)
            assert content is not None
            (folder / member.name).write_bytes(content.read())


def files_of(outputs: Path, tables: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of what is packed.

    Args:
        outputs: folder of what the authors' code gave.
        tables: the paper's reported numbers, JSON.
    """
    for path in sorted(outputs.glob("*.npz")):
        with np.load(path) as arrays:
            kept = {name: arrays[name] for name in arrays if not name.endswith(UNREAD)}
        buffer = io.BytesIO()
        np.savez(buffer, **kept)  # the archive compresses all files together
        yield path.name, buffer.getvalue()
    cells = json.loads((outputs / "MANIFEST.json").read_text())["anchors.npz"]["names"]
    yield "anchors.json", _json(cells)
    for path in sorted(outputs.glob("loss_*.json")):
        losses = json.loads(path.read_text())
        yield path.name, _json({key: of for key, of in losses.items() if not key.startswith("fcos")})
    stats = json.loads((outputs / "model_stats.json").read_text())
    yield "model_stats.json", _json({name: of for name, of in stats.items() if isinstance(of, dict)})
    yield "paper_tables.json", _json(_tables(json.loads(tables.read_text())))


def _tables(paper: dict[str, Any]) -> dict[str, Any]:
    """Of each table its rows: label, switches, reported numbers; of each claim the differences reported."""
    kept = ("label", "switches", "reported")
    rows = {
        name: [{key: row[key] for key in kept if key in row} for row in of["rows"]]
        for name, of in paper.items()
        if name.startswith("table")
    }
    return {"tables": rows, "claims": {claim["id"]: claim.get("paper_delta") for claim in paper["claims"]}}


def _json(content: object) -> bytes:
    return json.dumps(content, indent=1).encode()


def pack(outputs: Path, tables: Path, target: Path) -> None:
    """Writes the archive, with the same bytes for the same numbers."""
    with tarfile.open(target, "w:xz", preset=9) as archive:
        for name, content in files_of(outputs, tables):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    root = Path(sys.argv[1])
    pack(root / "golden", root / "reference" / "paper_tables.json", ARCHIVE)
