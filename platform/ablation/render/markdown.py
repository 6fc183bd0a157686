"""Markdown: pipe tables whose columns line up in the source too."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ablation.render import text
from ablation.results.claims import Verdict, summary
from ablation.results.table import FilledCell, FilledTable, Item, grid, num_heading_columns


def document(title: str, tables: Sequence[FilledTable]) -> str:
    """Every table under one title."""
    return "\n\n".join([f"# {escape(title)}", *map(table, tables)]) + "\n"


def table(filled: FilledTable) -> str:
    """One table: its heading, the pipe table, its caption."""
    head, *body = [[_item(item) for item in line] for line in grid(filled)]
    lines = pipe_table(head, body, num_left=num_heading_columns(filled))
    return f"## {filled.name}. {escape(filled.table.title)}\n\n{lines}\n\n{escape(filled.caption)}"


def claims(title: str, judged: Sequence[Verdict]) -> str:
    """The claims with their verdicts, as a document."""
    head = ["Claim", "Verdict", "Paper's way", "Paper", "Ours [interval]", "Detail"]
    body = [
        [
            escape(verdict.text),
            f"**{verdict.verdict}**" if verdict.verdict in ("supported", "refuted") else verdict.verdict,
            text.direction(verdict),
            text.paper_estimate(verdict),
            text.estimate(verdict),
            escape(verdict.detail),
        ]
        for verdict in judged
    ]
    lines, note = pipe_table(head, body, num_left=len(head)), text.claims_note(judged)
    return f"# {escape(title)}: the paper's claims\n\n{summary(judged)}\n\n{lines}\n\n{note}\n"


def pipe_table(head: Sequence[str], body: Sequence[Sequence[str]], num_left: int) -> str:
    """A pipe table of finished texts; the first `num_left` columns are flush left, the others centred."""
    widths = [max(3, *(len(line[i]) for line in [head, *body])) for i in range(len(head))]
    rule = [":" + "-" * (w - 1) if i < num_left else ":" + "-" * (w - 2) + ":" for i, w in enumerate(widths)]
    lines = [
        "| " + " | ".join(entry.ljust(width) for entry, width in zip(line, widths, strict=True)) + " |"
        for line in [head, rule, *body]
    ]
    return "\n".join(lines)


def escape(plain: str) -> str:
    """Text that Markdown shows literally, in a table cell too."""
    one_line = " ".join(plain.split())
    return re.sub(r"([\\`*_{}\[\]<>|~&])", r"\\\1", one_line)


def _item(item: Item) -> str:
    if isinstance(item, bool):
        return text.CHECK if item else ""
    return _cell(item) if isinstance(item, FilledCell) else escape(item)


def _cell(cell: FilledCell) -> str:
    ours = text.ours(cell) if cell.values else f"*{text.ours(cell)}*"
    reference = text.reference(cell)
    parts = [f"**{ours}**" if cell.best else ours, text.spread(cell), f"({reference})" if reference else ""]
    return " ".join(part for part in parts if part)
