"""The documentation holds together: links lead somewhere, every page can be reached, and what it names exists."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
INDEX = DOCS / "README.md"
TEXTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES = sorted([*TEXTS, *DOCS.rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
CODE_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(page: Path) -> str:
    return CODE_FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings: lower case, without punctuation, a hyphen for each space."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    return [target for target in LINK.findall(prose(page)) if not target.startswith(("http://", "https://", "mailto:"))]


def leads_nowhere(page: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    return not file.exists() or (anchor != "" and anchor not in anchors(file))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading_that_exist(page: Path):
    assert [target for target in links(page) if leads_nowhere(page, target)] == []


def test_every_page_is_in_the_index():
    linked = {(INDEX.parent / target.partition("#")[0]).resolve() for target in links(INDEX)}
    assert [name_of(page) for page in PAGES if page not in linked | {INDEX, ROOT / "README.md"}] == []


def test_the_readme_leads_to_the_index_and_is_short():
    assert "docs/README.md" in links(ROOT / "README.md")
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1000


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_names_only_files_that_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:megatron_atesd|checkpoints_convert|tools|examples|tests|docs)/[\w/.]*\w\.(?:py|sh|yaml|svg|md)\b", text))
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_speaks_of_how_it_was_written(page: Path):
    assert re.findall(r"\bsessions?\b(?!\.py)|\bissue #?\d+", page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_rate_is_written_with_per(page: Path):
    units = r"(?:nats|bytes|tokens|seconds|messages|GiB)"
    assert re.findall(rf"{units} an? (?:token|second|parameter|update|rank|response|problem|row|pass)\b", prose(page)) == []


def test_the_citation_names_this_version_and_both_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["version"] == project["version"]
    assert [reference["url"][-10:] for reference in citation["references"]] == ["2605.11458", "2601.18734"]
