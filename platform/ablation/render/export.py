"""The results as data files for other programs: a file for each frame of `ablation.results.frames`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ablation.files import write_whole
from ablation.render.files import writing_to
from ablation.results.frames import FRAMES, Results

if TYPE_CHECKING:
    import pandas as pd

DataFormat = Literal["csv", "parquet", "json"]
DATA_FORMATS: tuple[DataFormat, ...] = get_args(DataFormat)


def export(results: Results, folder: Path, data_format: DataFormat) -> list[Path]:
    """Writes trials, attempts, curves, evaluations, cells and claims, a file each; returns the paths.

    CSV and Parquet hold nested values (configs, lists) as JSON text, and CSV has an empty field for what does
    not exist; JSON is a list of objects, with null there. Times are UTC.

    Raises:
        UserError: the folder cannot be written.
    """
    write, paths = _WRITERS[data_format], []
    with writing_to(folder):
        for name, frame in FRAMES.items():
            paths.append(write_whole(folder / f"{name}.{data_format}", write(frame(results))))
    return paths


def _csv(frame: pd.DataFrame) -> bytes:
    return _flat(frame).to_csv(index=False).encode()


def _parquet(frame: pd.DataFrame) -> bytes:
    buffer = BytesIO()
    _flat(frame).to_parquet(buffer, index=False)
    return buffer.getvalue()


def _json(frame: pd.DataFrame) -> bytes:
    return frame.to_json(orient="records", date_format="iso", indent=1, double_precision=15).encode()


_WRITERS: Mapping[DataFormat, Callable[[pd.DataFrame], bytes]] = {
    "csv": _csv,
    "parquet": _parquet,
    "json": _json,
}


def _flat(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with nested values as JSON text, and columns of one type."""
    nested = {str(name): column for name, column in frame.items() if column.dtype == object}
    return frame.assign(**{name: column.map(_text) for name, column in nested.items()})


def _text(value: Any) -> Any:
    if isinstance(value, dict | list | tuple):
        return json.dumps(value)
    return str(value) if isinstance(value, bool) else value
