"""Links of every page: those within the repository lead to files and headings; others are of the form that leads somewhere."""

import re
import unicodedata
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
FILES = [
    *ROOT.glob("*.md"),
    *DOCS.rglob("*.md"),
    *(ROOT / "models/weights").glob("*.md"),
    *(ROOT / "tests").rglob("*.md"),
]
PAGES = sorted(str(path.relative_to(ROOT)) for path in FILES)
SOURCES = [
    path
    for folder in ("s4nd", "models", "train", "configs")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".yaml")
]
TEXTS = sorted(str(path.relative_to(ROOT)) for path in (*FILES, *SOURCES, ROOT / "CITATION.cff", ROOT / "setup.py"))
FENCE = re.compile(r"^```\w*\n.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[([^\]]*)\]\(([^)]*)\)")
ARXIV = re.compile(r"arxiv(?:\.org/abs/|:)\s*([^\s)\]`,;\"]*)", re.IGNORECASE)


def prose(page):
    """The page without blocks and inline code."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", (ROOT / page).read_text(encoding="utf-8")))


def anchors(page):
    """Of the headings, as the site's and GitHub's are made."""
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", (ROOT / page).read_text(encoding="utf-8")), re.MULTILINE):
        text = unicodedata.normalize("NFKD", re.sub(r"\]\([^)]*\)", "", heading))
        yield re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    for _, link in LINK.findall(prose(page)):
        if urlsplit(link).scheme:
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.is_file(), f"{page} links to {link}"
        assert not anchor or anchor in anchors(target.relative_to(ROOT)), f"{page} links to {link}"
        if page.startswith("docs/"):  # the site holds nothing else
            assert target.is_relative_to(DOCS), f"{page} links to {link}"


@pytest.mark.parametrize("page", PAGES)
def test_links_are_written_in_the_one_way_that_these_tests_read(page):
    assert not re.search(r"<(a|img) |^\[[^\]]+\]: |<https?:", prose(page), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_links_to_other_places_are_addresses_that_could_exist(page):
    """No test asks the network: a scheme that is encrypted, a host, and no space or mark of the sentence around it."""
    for text, link in LINK.findall(prose(page)):
        address = urlsplit(link)
        if address.scheme:
            assert address.scheme == "https" and "." in address.netloc and not re.search(r"\s|[.,;]$", link), link
            if "arXiv:" in text and "arxiv.org" in link:
                assert ARXIV.findall(text) == ARXIV.findall(link), f"[{text}]({link})"


@pytest.mark.parametrize("text", [text for text in TEXTS if ARXIV.search((ROOT / text).read_text(encoding="utf-8"))])
def test_numbers_of_arxiv_are_of_its_form(text):
    """Since April 2007 YYMM.NNNN, of five digits from 2015 on (arXiv's own description of its identifiers)."""
    for number in ARXIV.findall((ROOT / text).read_text(encoding="utf-8")):
        found = re.fullmatch(r"(\d\d)(0[1-9]|1[0-2])\.(\d{4,5})[.:]?", number)
        assert found and "0704" <= found[1] + found[2] and len(found[3]) == (5 if found[1] >= "15" else 4), number
