"""The parts of a report's page that are text and tables. Everything that comes from a run is escaped."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from megatron_atesd.report.legend import describe
from megatron_atesd.report.phases import REMEDIES, REST
from megatron_atesd.report.pictures import PALETTE
from megatron_atesd.report.run_data import SAMPLES_SHOWN, RunData, duration
from megatron_atesd.report.run_figures import colours
from megatron_atesd.report.run_files import changed_settings
from megatron_atesd.report.samples import LEVELS, Sample, heat_strip, mean_kl, outcome, spread

GLANCE = (
    "rollout/accuracy",
    "probe/nll",
    "distill/kl",
    "student/entropy",
    "exposure/alpha",
    "rollout/length",
    "rollout/truncated",
    "time/step",
    "perf/tokens_per_second",
    "memory/peak_gib",
)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Cells are HTML. The table scrolls sideways where it is too wide."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def code(name: str) -> str:
    """A name that may break where its words do."""
    return "<code>" + re.sub(r"([/_.])", r"\1<wbr>", escape(name)) + "</code>"


def number(value: Any) -> str:
    """Three digits that count; – for what is not known."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def names(runs: Mapping[str, RunData]) -> dict[str, str]:
    """Each run's name as HTML, with its colour where there are several."""
    shades = colours(runs)
    dots = {run: f'<span class="dot" style="background:{shades[run]}"></span>' if len(runs) > 1 else "" for run in runs}
    return {run: dots[run] + escape(run) for run in runs}


def glance(runs: Mapping[str, RunData]) -> str:
    """Start and end of what matters: tiles, or, of several runs, a table with one column a run."""
    known = [name for name in GLANCE if any(name in run.metrics for run in runs.values())]
    told = "<p>Mean of the first tenth of the updates → mean of the last tenth.</p>"
    if len(runs) > 1:
        return _ends(runs, known) + told
    (run,) = runs.values()
    return f'<div class="tiles">{"".join(_tile(run, name) for name in known)}</div>{told}'


def _tile(run: RunData, name: str) -> str:
    entry = describe(name)
    unit = f"<small>{escape(entry.unit)}</small>" if entry else ""
    return f"<div><b>{' → '.join(map(number, run.start_and_end(name)))}</b>{code(name)}<br>{unit}</div>"


def every_metric(runs: Mapping[str, RunData]) -> str:
    """The same of every metric, with its meaning."""
    known = sorted({name for run in runs.values() for name in run.metrics} - {"update"})
    return f"<details><summary>All {len(known)} metrics</summary>{_ends(runs, known, explained=True)}</details>"


def _ends(runs: Mapping[str, RunData], known: Sequence[str], explained: bool = False) -> str:
    rows = []
    for name in known:
        entry = describe(name)
        cells = [" → ".join(map(number, run.start_and_end(name))) if name in run.metrics else "–" for run in runs.values()]
        meaning = [f'<span class="note">{escape(entry.meaning if entry else "")}</span>'] if explained else []
        unit = f"<br><small>{escape(entry.unit)}</small>" if entry and entry.unit else ""
        rows.append([f"{code(name)}{unit}", *cells, *meaning])
    columns = names(runs).values() if len(runs) > 1 else ["start → end"]
    return table(["metric", *columns, *(["meaning"] if explained else [])], rows)


def health(runs: Mapping[str, RunData]) -> str:
    """Updates at which each alarm was on; '' for runs without alarms among their metrics."""
    rows, watched = [], 0
    for run, data in runs.items():
        for name in sorted(name for name in data.metrics if name.startswith("health/")):
            watched += 1
            on = data.metrics["update"][np.nan_to_num(data.metrics[name]) > 0]
            entry = describe(name)
            if len(on):
                when = f"{len(on)}: {on[0]:.0f}" + (f" … {on[-1]:.0f}" if len(on) > 1 else "")
                rows.append([names(runs)[run], code(name), when, escape(entry.meaning if entry else "")])
    if not watched:
        return ""
    return table(["run", "alarm", "updates", "meaning"], rows) if rows else f"<p>None of {watched} alarms was set off.</p>"


def time_shares(runs: Mapping[str, RunData]) -> str:
    """A bar a run: what part of its seconds each phase took, evaluations and saving with them."""
    shades = dict(zip(REMEDIES, PALETTE, strict=False)) | {REST: "var(--muted)"}
    bars = []
    for run, data in runs.items():
        phases = data.phases()
        pieces = [
            f'<i style="width:{100 * phases.share(phase):.2f}%;background:{shades[phase]}" title="{phase}: {duration(seconds)}"></i>'
            for phase, seconds in phases.seconds.items()
        ]
        told = ", ".join(f"{phase} {100 * phases.share(phase):.0f} %" for phase in phases.seconds if phases.share(phase) >= 0.005)
        title = f"<h3>{names(runs)[run]}</h3>" if len(runs) > 1 else ""
        bars.append(f'{title}<div class="bar">{"".join(pieces)}</div><p>{duration(phases.total)}: {told}</p>')
    key = "".join(f'<span class="key"><span class="dot" style="background:{shades[phase]}"></span>{phase}</span>' for phase in shades)
    return "".join(bars) + f"<p>{key}</p>"


def samples(runs: Mapping[str, RunData]) -> str:
    """Some of each run's samples, from the first to the last, with a scale above; '' where no run has any."""
    count = SAMPLES_SHOWN if len(runs) == 1 else max(2, SAMPLES_SHOWN // len(runs))
    shown = [(run, sample) for run, data in runs.items() for sample in spread(data.samples, count)]
    shown.sort(key=lambda pair: pair[1].update)  # runs of one seed had the same problem then
    if not shown:
        return ""
    bounds = "".join(f'<span class="h{place}">&nbsp;≥ {bound:g}&nbsp;</span>' for place, bound in enumerate(LEVELS, 1))
    scale = (
        f'<p class="strip scale">nats: {bounds}</p><p>The darker a token, the more the teacher, who sees the reference, would have written '
        "something else there. That is where the student learns. Point at a token to read its KL.</p>"
    )
    return scale + "".join(_sample(sample, names(runs)[run] if len(runs) > 1 else "") for run, sample in shown)


def _sample(sample: Sample, run: str) -> str:
    seen = f"the teacher sees {sample.revealed} of {sample.segments} reference segments (α {sample.alpha:.2f})"
    judged = f"<b>{outcome(sample)}</b> · {seen} · KL {number(mean_kl(sample))} nats per token"
    head = f"{run} update {sample.update} · {escape(sample.id)} · {judged}"
    problem = f"<p>{escape(sample.problem)}<br><small>answer: {escape(sample.answer)}</small></p>"
    return f'<article><p class="note">{head}</p>{problem}<div class="strip">{heat_strip(sample)}</div></article>'


def settings(runs: Mapping[str, RunData]) -> str:
    """Of one run those that differ from the defaults, of several those that differ between them; then all."""
    tables = {run: {k: v for k, v in data.settings.items() if not k.startswith("versions.")} for run, data in runs.items()}
    every = list(dict.fromkeys(name for values in tables.values() for name in values))
    if len(runs) == 1:
        first = [name for values in tables.values() for name in changed_settings(values)]
        title = f"{len(first)} settings differ from the defaults."
    else:
        first = [name for name in every if len({_value(values.get(name)) for values in tables.values()}) > 1]
        title = f"{len(first)} settings differ between the runs."
    whole = f"<details><summary>All {len(every)} settings</summary>{_settings_table(runs, tables, every)}</details>"
    return f"<p>{title}</p>{_settings_table(runs, tables, first)}{whole}" if every else "<p>No config.yaml was found.</p>"


def _settings_table(runs: Mapping[str, RunData], tables: Mapping[str, Mapping[str, Any]], chosen: Sequence[str]) -> str:
    rows = [[code(name), *(_value(values.get(name)) for values in tables.values())] for name in chosen]
    return table(["setting", *(names(runs).values() if len(runs) > 1 else ["value"])], rows, "settings")


def _value(value: Any) -> str:
    return "–" if value is None else escape(str(value))


def environment(runs: Mapping[str, RunData]) -> str:
    """Versions and machine of each run."""
    prefix = "versions."
    every = list(dict.fromkeys(name for data in runs.values() for name in data.settings if name.startswith(prefix)))
    rows = [[escape(name.removeprefix(prefix)), *(_value(data.settings.get(name)) for data in runs.values())] for name in every]
    rows.append(["run directory", *(escape(str(data.folder)) for data in runs.values())])
    return table(["what", *(names(runs).values() if len(runs) > 1 else ["value"])], rows, "settings")
