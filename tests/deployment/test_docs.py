"""What the pages name exists: links, headings that links point at, files."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
FOLDERS = "benchmarks|dashboards|detector|docker|docs|experiments|platform|tests"
WRITTEN_BY_USERS = {"docker/.env"}
# Where a path in a page may start: most at the root, a table of tests in tests/, a walk in the platform.
STARTS = (ROOT, ROOT / "tests", ROOT / "platform/ablation")


def _anchor(heading: str) -> str:
    """What a link to a heading looks like: "## What is in it" is #what-is-in-it."""
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


def _anchors(page: Path) -> set[str]:
    return {_anchor(heading) for heading in re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES)
def test_the_links_of_a_page_lead_somewhere(page: str) -> None:
    here = ROOT / page
    for link in re.findall(r"\]\(([^)\s]+)\)", here.read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = here.parent / path if path else here
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    named = re.findall(r"(?<![\w./*-])((?:[\w.]+/)+[\w.]+\.(?:py|sh|sbatch|ini))\b", text)
    named += re.findall(rf"(?<![\w./-])((?:{FOLDERS})/[\w./-]*\w)", text)
    starts = (*STARTS, (ROOT / page).parent)
    missing = {name for name in named if not any((start / name).exists() for start in starts)}
    assert missing <= WRITTEN_BY_USERS


def test_the_study_in_the_readme_is_the_example_in_its_order() -> None:
    [block] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    example = iter((ROOT / "docs/examples/starts.py").read_text().splitlines())
    lost = [line for line in block.splitlines() if line and line not in example]
    assert lost == []


def test_every_word_of_the_glossary_names_something_in_the_code() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| ([a-z]+) \| .* \| `([\w/]+\.py)` `(\w+)` \|$", text, re.MULTILINE)
    assert len(rows) >= 12
    for word, file, name in rows:
        code = (ROOT / "platform/ablation" / file).read_text()
        assert re.search(rf"^(?:class |def )?{name}\b", code, re.MULTILINE), name
        assert word in name.lower()


@pytest.mark.parametrize("page", PAGES)
def test_a_name_that_a_page_gives_with_its_file_is_defined_there(page: str) -> None:
    for file, name in re.findall(r"`([\w/]+\.py)`\s+`(\w+)`", (ROOT / page).read_text()):
        [code] = [start / file for start in STARTS if (start / file).exists()]
        assert re.search(rf"^\s*(?:class |def )?{name}\b", code.read_text(), re.MULTILINE), f"{file} {name}"
