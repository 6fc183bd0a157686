"""HTML: one self-contained file, in the light or dark scheme of the system, for any width."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ablation.render import text
from ablation.results.claims import Verdict, summary
from ablation.results.table import FilledCell, FilledTable, Item, grid, num_heading_columns, spans

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5f6873; --line: #d9dde2; --page: #fff;
  --raised: #f5f6f8; --best: #e6f2ea; --good: #18794e; --bad: #c62a2f; --open: #946800; --busy: #0b68cb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #9ba4ae; --line: #363b42;
  --page: #15181c; --raised: #1e2227; --best: #1b3527; --good: #4cc38a; --bad: #ff6369;
  --open: #f0c000; --busy: #52a9ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem clamp(1rem, 4vw, 3rem) 4rem; max-width: 76rem; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem; }
p { max-width: 60rem; } p.note { color: var(--soft); font-size: .875rem; margin: .5rem 0; }
nav { display: flex; flex-wrap: wrap; gap: .25rem .9rem; font-size: .9rem; } a { color: var(--busy); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums;
  border-top: 2px solid var(--ink); border-bottom: 2px solid var(--ink); }
th, td { padding: .35rem .7rem; text-align: center; white-space: nowrap; }
thead th { border-bottom: 1px solid var(--ink); font-weight: 600; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
th.left, td.left { text-align: left; } tbody th { font-weight: 400; }
tbody th:first-child { position: sticky; left: 0; background: var(--page); }
td.wrap { white-space: normal; min-width: 16rem; }
td.best { background: var(--best); } td small { display: block; color: var(--soft); font-size: .78rem; }
td i { font-size: .75rem; font-style: normal; color: var(--soft); }
.complete { color: inherit; } .waiting, .undefined, .pending, .reported, .unreported { color: var(--soft);
  font-style: italic; }
.running { color: var(--busy); font-style: italic; } .failed, .unreadable, .refuted { color: var(--bad); }
.supported { color: var(--good); } .undecided, .submit, .unmeasured { color: var(--open); }
"""


_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""A page runs no script and loads nothing, even if a text were inserted unescaped."""


def page(title: str, body: str, style: str = "") -> str:
    """A complete document around a finished body."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def document(title: str, tables: Sequence[FilledTable], judged: Sequence[Verdict]) -> str:
    """Every table, then the claims if any."""
    links = [f'<a href="#{escape(one.table.id)}">{escape(one.name)}</a>' for one in tables]
    sections = [table(one) for one in tables]
    if judged:
        links.append('<a href="#claims">Claims</a>')
        sections.append(claims(judged))
    return page(title, "\n".join([f"<h1>{escape(title)}</h1>", f"<nav>{''.join(links)}</nav>", *sections]))


def table(filled: FilledTable) -> str:
    """One table as a section, its caption below it."""
    head, *body = grid(filled)
    num_left = num_heading_columns(filled)
    lines = [_line(line, num_left) for line in body]
    return (
        f'<section id="{escape(filled.table.id)}">\n<h2>{escape(filled.name)}. '
        f"{escape(filled.table.title)}</h2>\n"
        f'<div class="scroll"><table>\n<thead>{_head(head, num_left)}</thead>\n<tbody>\n'
        + "\n".join(lines)
        + f'\n</tbody></table></div>\n<p class="note">{escape(filled.caption)}</p>\n</section>'
    )


def claims(judged: Sequence[Verdict]) -> str:
    """The claims with their verdicts as a section."""
    names = ("Claim", "Verdict", "Paper's way", "Paper", "Ours [interval]", "Detail")
    head = "".join(f'<th class="left">{escape(name)}</th>' for name in names)
    return (
        f'<section id="claims">\n<h2>Claims</h2>\n<p>{escape(summary(judged))}</p>\n'
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(map(_claim, judged))
        + f'\n</tbody></table></div>\n<p class="note">{escape(text.claims_note(judged))}</p>\n</section>'
    )


def _claim(verdict: Verdict) -> str:
    entries = (
        ("wrap", verdict.text),
        (verdict.verdict, verdict.verdict),
        ("", text.direction(verdict)),
        ("", text.paper_estimate(verdict)),
        ("", text.estimate(verdict)),
        ("wrap", verdict.detail),
    )
    cells = "".join(f'<td class="left {kind}">{escape(shown)}</td>' for kind, shown in entries)
    return f'<tr title="{escape(verdict.id)}">{cells}</tr>'


def _head(head: Sequence[Item], num_left: int) -> str:
    entries = []
    for index, (item, width) in enumerate(spans(head)):
        span = f' colspan="{width}" scope="colgroup"' if width > 1 else ' scope="col"'
        side = ' class="left"' if index < num_left else ""
        entries.append(f"<th{side}{span}>{_name(item)}</th>")
    return f"<tr>{''.join(entries)}</tr>"


def _line(line: Sequence[Item], num_left: int) -> str:
    entries = [
        f'<th scope="row" class="left">{_name(item)}</th>' if index < num_left else _item(item)
        for index, item in enumerate(line)
    ]
    return f"<tr>{''.join(entries)}</tr>"


def _name(item: Item) -> str:
    if isinstance(item, bool):
        return text.CHECK if item else ""
    return escape(str(item))


def _item(item: Item) -> str:
    if isinstance(item, bool):
        return f"<td>{_name(item)}</td>"
    return _cell(item) if isinstance(item, FilledCell) else f"<td>{escape(item)}</td>"


def _cell(cell: FilledCell) -> str:
    shown = escape(text.ours(cell))
    number = f"<b>{shown}</b>" if cell.best else shown
    if not cell.values:
        number = f'<span class="{cell.state.split()[0]}">{shown}</span>'
    spread, reference = text.spread(cell), text.reference(cell)
    beside = f" <i>{escape(spread)}</i>" if spread else ""
    below = f"<small>({escape(reference)})</small>" if reference else ""
    kind = ' class="best"' if cell.best else ""
    return f'<td{kind} title="{escape(text.provenance(cell))}">{number}{beside}{below}</td>'
