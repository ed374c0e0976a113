"""docs/settings.md and docs/metrics.md say what the code says today."""

from pathlib import Path

import pytest

from megatron_atesd.config.bounds import BOUNDS
from megatron_atesd.config.fields import all_settings, spell
from megatron_atesd.config.megatron_sections import UNSUPPORTED
from megatron_atesd.report.legend import LEGEND
from megatron_atesd.report.reference_pages import pages

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = pages()
SETTINGS, METRICS = PAGES["settings.md"], PAGES["metrics.md"]


@pytest.mark.parametrize("name", PAGES)
def test_the_page_in_docs_is_the_one_that_would_be_written(name: str):
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name], "run: python tools/make_docs.py"


def cells(page: str, first: str) -> list[str]:
    """The cells of the one row that begins with `first`."""
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{first}` |")]
    return [cell.strip() for cell in row.strip("|").split(" | ")]


@pytest.mark.parametrize("name", [name for name in all_settings() if "." in name])
def test_a_setting_has_one_row_with_its_default_and_range(name: str):
    _, kind, default, about = cells(SETTINGS, name)
    assert default == f"`{spell(all_settings()[name].default)}`"
    assert name not in BOUNDS or kind.endswith(f"; {BOUNDS[name][0]}")
    assert about


def test_every_field_of_megatron_core_with_one_value_is_there():
    for section, fields in UNSUPPORTED.items():
        for field, value in fields.items():
            assert cells(SETTINGS, f"{section}.{field}") == [f"`{section}.{field}`", f"`{spell(value)}`"]


def test_a_metric_has_one_row():
    assert all(len(cells(METRICS, metric.name)) == 3 for metric in LEGEND)


def test_what_markdown_would_swallow_is_escaped():
    assert "Run directory" in SETTINGS
    assert "Checkpoints in &lt;`run.dir`&gt;/checkpoints." in SETTINGS
