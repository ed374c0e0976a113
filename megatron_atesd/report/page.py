"""<run>/report.html: what happened in one run or several, in one file that needs no network and no JavaScript.

Problems and responses may come from anywhere: all text is escaped, and the page's own policy lets nothing load or run. Needs matplotlib.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib import rc_context

from megatron_atesd.errors import DataError
from megatron_atesd.report import page_parts as parts
from megatron_atesd.report.compare_figures import compare_figures
from megatron_atesd.report.history_figures import Drawing, history_figures
from megatron_atesd.report.inline_svg import inline_svg
from megatron_atesd.report.page_evaluation import evaluation
from megatron_atesd.report.page_style import STYLE
from megatron_atesd.report.run_data import RunData, load_run
from megatron_atesd.report.run_files import read_object

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write_report(runs: Mapping[str, Path], out: Path, more: Sequence[Path] = ()) -> None:
    """Write the page of these runs, by their names. more: evaluation folders that are not below a run.

    Raises DataError for a run without readable metrics, and when the file cannot be written.
    """
    others = {str(folder): read_object(folder / "evaluation.json") for folder in more}
    page = report_page({name: load_run(folder) for name, folder in runs.items()}, others)
    partial = out.with_name(f"{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(page, encoding="utf-8")
        partial.replace(out)
    except OSError as error:
        raise DataError(f"cannot write the report {out} ({error.strerror}): choose another --out") from None


def report_page(runs: Mapping[str, RunData], others: Mapping[str, dict[str, Any]]) -> str:
    """The whole page as HTML. others: evaluations of no run, by name."""
    title = " and ".join(runs) if len(runs) < 3 else f"{len(runs)} runs"
    sections = {
        "At a glance": parts.glance(runs) + parts.every_metric(runs),
        "Evaluation": evaluation(runs, others),
        "Health": parts.health(runs),
        "Pictures": pictures(runs),
        "Sample responses": parts.samples(runs),
        "Where the time went": parts.time_shares(runs),
        "Settings": parts.settings(runs),
        "Environment": parts.environment(runs),
    }
    present = {name: body for name, body in sections.items() if body}
    links = " · ".join(f'<a href="#{_anchor(name)}">{name}</a>' for name in present)
    body = "".join(f'<section id="{_anchor(name)}"><h2>{name}</h2>{content}</section>' for name, content in present.items())
    lines = "".join(
        f"<p>{parts.names(runs)[name] + ': ' if len(runs) > 1 else ''}{escape(run.headline())}</p>" for name, run in runs.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><header><h1>{escape(title)}</h1>{lines}<nav>{links}</nav></header>"
        f"<main>{body}</main></body></html>\n"
    )


def pictures(runs: Mapping[str, RunData]) -> str:
    """Curves of all runs, then what each run has of its own."""
    with rc_context({"text.parse_math": False}):
        drawings = compare_figures({name: run.metrics for name, run in runs.items()})
        for place, (name, run) in enumerate(runs.items()):
            own = history_figures(run.metrics, name if len(runs) > 1 else "")
            drawings |= {f"{place}/{key}": drawing for key, drawing in own.items()}
        return f'<div class="grid">{"".join(_figure(key, drawing) for key, drawing in drawings.items())}</div>' if drawings else ""


def _figure(key: str, drawing: Drawing) -> str:
    return f"<figure>{inline_svg(drawing.figure, key)}<figcaption>{escape(drawing.caption)}</figcaption></figure>"


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")
