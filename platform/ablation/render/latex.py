r"""LaTeX with booktabs: one complete document that pdflatex turns into a page or two a table.

Needs only what every TeX distribution has (booktabs, xcolor, graphicx, geometry). Everything that is
not ours to format goes through `escape`, which leaves nothing but ASCII.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import pairwise

from ablation.render import text
from ablation.results.table import FilledCell, FilledTable, Item, grid, num_heading_columns, spans

PREAMBLE = r"""\documentclass[10pt]{article}
\usepackage[a4paper,margin=18mm]{geometry}
\usepackage{booktabs,graphicx,xcolor,amssymb}
% \ours{our number}{the paper's, difference}: two lines of one cell
\newcommand{\ours}[2]{\begin{tabular}[t]{@{}c@{}}#1\\[-2pt]{\scriptsize\color{gray}#2}\end{tabular}}
% \fitted: a table as it is, or made smaller until it is as narrow as the text and leaves room for its heading
\newsavebox{\fit}
\newcommand{\fitted}[1]{\sbox{\fit}{#1}%
  \ifdim\wd\fit>\linewidth\sbox{\fit}{\resizebox{\linewidth}{!}{\usebox{\fit}}}\fi
  \ifdim\dimexpr\ht\fit+\dp\fit\relax>0.85\textheight\resizebox*{!}{0.85\textheight}{\usebox{\fit}}%
  \else\usebox{\fit}\fi}
\renewcommand{\floatpagefraction}{0.7}
\begin{document}"""


def document(title: str, tables: Sequence[FilledTable]) -> str:
    """Every table, as a document of its own."""
    head = rf"\section*{{{escape(title)}}}"
    return "\n\n".join([PREAMBLE, head, *map(table, tables), r"\end{document}"]) + "\n"


def table(filled: FilledTable) -> str:
    r"""One table environment. In another document it needs the packages and commands of `PREAMBLE`."""
    head, *body = grid(filled)
    num_left = num_heading_columns(filled)
    rules = ["", *(_rule(line, before) for before, line in pairwise(body))]
    lines = [
        r"\begin{table}[htbp]\centering",
        # The paper's own number, which LaTeX's counter would lose when a table is left out.
        rf"\textbf{{{escape(filled.name)}. {escape(filled.table.title)}}}\\[2pt]",
        rf"\parbox{{0.94\linewidth}}{{\footnotesize {escape(filled.caption)}}}\par\medskip",
        rf"\fitted{{\begin{{tabular}}{{{'l' * num_left}{'c' * (len(head) - num_left)}}}",
        r"\toprule",
        *_head(head, num_left),
        *(rule * filled.table.transposed + _line(line) for rule, line in zip(rules, body, strict=True)),
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def _head(head: Sequence[Item], num_left: int) -> list[str]:
    r"""The heading row; neighbours of the same name share one, with a rule below."""
    entries, rules, start = [], [], 1
    for item, width in spans(head):
        entry = _item(item)
        if width > 1:
            entry = rf"\multicolumn{{{width}}}{{c}}{{{entry}}}"
            rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
        entries.append(entry)
        start += width
    shared = len(rules) > 0
    return [" & ".join(entries) + r" \\", "".join(rules) if shared else r"\midrule"]


def _rule(line: Sequence[Item], before: Sequence[Item]) -> str:
    """The rule above a row of a transposed table: where cells begin, and between rows of two lines."""
    begins = _has_cells(line) and not _has_cells(before)
    return "\\midrule\n" if begins or _is_high(line) else ""


def _line(line: Sequence[Item]) -> str:
    return " & ".join(map(_item, line)) + r" \\" + (r"\addlinespace[2pt]" if _is_high(line) else "")


def _has_cells(line: Sequence[Item]) -> bool:
    return any(isinstance(item, FilledCell) for item in line)


def _is_high(line: Sequence[Item]) -> bool:
    """Whether the cells of a row have a second line with the paper's number."""
    return any(isinstance(item, FilledCell) and item.paper is not None for item in line)


def _item(item: Item) -> str:
    if isinstance(item, bool):
        return r"$\checkmark$" if item else ""
    return _cell(item) if isinstance(item, FilledCell) else escape(item)


def _cell(cell: FilledCell) -> str:
    shown = escape(text.ours(cell))
    if not cell.values:
        shown = rf"{{\footnotesize\itshape {shown}}}"
    first = rf"\textbf{{{shown}}}" if cell.best else shown
    spread = text.spread(cell)
    if spread:
        first += rf"{{\scriptsize\,{escape(spread)}}}"
    reference = text.reference(cell)
    return rf"\ours{{{first}}}{{{escape(f'({reference})')}}}" if reference else first


_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    # LaTeX would read both as arguments of the \\ before them.
    "[": "{[}",
    "*": "{*}",
    '"': "''",
    "±": r"$\pm$",
    "−": r"$-$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "→": r"$\rightarrow$",
    "°": r"$^\circ$",
    "µ": r"$\mu$",
    "✓": r"$\checkmark$",
    "†": r"$\dagger$",
    "–": "--",
    "—": "---",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    "…": r"\ldots{}",
    "ß": r"\ss{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
}

_ACCENTS = {
    "\u0300": "`",
    "\u0301": "'",
    "\u0302": "^",
    "\u0303": "~",
    "\u0304": "=",
    "\u0306": "u",
    "\u0307": ".",
    "\u0308": '"',
    "\u030a": "r",
    "\u030b": "H",
    "\u030c": "v",
    "\u0327": "c",
    "\u0328": "k",
}


def escape(plain: str) -> str:
    """Text that LaTeX sets literally. A character without a LaTeX command is set as its code, "U+4E2D"."""
    return "".join(_escape(sign) for sign in " ".join(plain.split()))


def _escape(sign: str) -> str:
    if sign in _SPECIAL:
        return _SPECIAL[sign]
    if sign.isascii():
        return sign if sign.isprintable() else ""
    base, *marks = list(unicodedata.normalize("NFD", sign))
    if base.isascii() and len(marks) == 1 and marks[0] in _ACCENTS:
        dotless = {"i": r"\i", "j": r"\j"}.get(base, base)
        return rf"{{\{_ACCENTS[marks[0]]}{{{dotless}}}}}"
    compatible = unicodedata.normalize("NFKD", sign)
    if compatible.isascii():
        return "".join(map(_escape, compatible))
    return rf"\texttt{{U+{ord(sign):04X}}}"
