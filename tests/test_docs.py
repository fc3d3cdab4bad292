"""What the pages link to and name is there: files, headings, paths of the tree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
# Where a path of a page may begin, besides the page's own folder.
ROOMS = [ROOT, ROOT / "ruprompt_fast"]
PATH = re.compile(r"(?:[\w.-]+/)+[\w-]+\.(?:py|md|cc|h|yaml|txt)")
PLACEHOLDER = re.compile(r"[A-Z]{4,}")


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub links to them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_are_there(page: Path) -> None:
    """Paths between backticks, as the tree has them or below the package."""
    for code in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
        if PATH.fullmatch(code) and not PLACEHOLDER.search(code):
            assert any((room / code).exists() for room in ROOMS), code
