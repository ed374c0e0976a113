"""TensorBoard's page of custom scalars: what belongs together side by side, made from the legend of metrics.

A chart names metrics of the legend; those that no chart names have one each. A chart is there from the first of its metrics on. It finds
names by regular expression, so that those with a value in them, and those of difficulty bins, have their place whenever they come.
"""

from collections.abc import Collection, Mapping

from megatron_atesd.report.legend import LEGEND, Metric, pattern

# group → chart → what it shows, all of one unit
CHARTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "learning": {
        "loss and KL": ("distill/loss", "distill/kl"),
        "KL by position in the response": ("distill/kl_at/<place>",),
        "shares of tokens": ("distill/top1_disagreement", "distill/clipped_tokens", "distill/clipped_kl"),
        "entropy": ("student/entropy", "distill/teacher_entropy"),
        "NLL of the probe": ("probe/nll", "probe/own_nll", "probe/wrong_nll"),
        "events": ("optim/skipped", "distill/teacher_refreshed"),
    },
    "exposure": {
        "α": ("exposure/alpha", "exposure/mean", "controller/alpha", "controller/posterior_best"),
        "Beta policy": ("exposure/a", "exposure/b"),
        "reference segments": ("exposure/revealed", "exposure/segments"),
        "scores by α": ("controller/score/<α>",),
        "reward and its parts": ("controller/reward", "controller/learning_progress", "controller/grounding"),
    },
    "rollout": {
        "length": ("rollout/length", "rollout/length_p10", "rollout/length_p50", "rollout/length_p90"),
        "ends": ("rollout/truncated", "rollout/loops", "rollout/empty"),
        "log-probability gap": ("rollout/logprob_gap", "rollout/logprob_gap_max"),
    },
    "speed": {
        "seconds by phase": ("time/step", "time/rollout", "time/check", "time/exposure", "time/teacher", "time/student", "time/probe"),
    },
}
TITLES = {"checkpoint": "checkpoints"}
Chart = tuple[str, list[str]]  # "Multiline", regular expressions of metrics
Layout = dict[str, dict[str, Chart]]


def layout(logged: Collection[str], legend: tuple[Metric, ...] = LEGEND) -> Layout:
    """Of the charts that have one of the legend's names in `logged`, as torch's `custom_scalars` takes it: category → title →
    chart. What a chart holds does not depend on `logged`, so that TensorBoard can merge runs."""
    found: Layout = {}
    for group in dict.fromkeys(metric.group for metric in legend):
        known = {metric.name: metric for metric in legend if metric.group == group}
        charts = {title: tuple(name for name in names if name in known) for title, names in CHARTS.get(group, {}).items()}
        alone = known.keys() - {name for names in charts.values() for name in names}
        charts |= {name: (name,) for name in known if name in alone}
        shown = {title: names for title, names in charts.items() if not set(names).isdisjoint(logged)}
        found[TITLES.get(group, group)] = {_titled(title, known[names[0]].unit): _lines(names) for title, names in shown.items()}
    return {title: charts for title, charts in found.items() if charts}


def _titled(title: str, unit: str) -> str:
    return f"{title} ({unit})" if unit and unit != title else title


def _lines(names: tuple[str, ...]) -> Chart:
    return ("Multiline", [rf"(bin\d+/)?{pattern(name)}$" for name in names])


def guide(legend: tuple[Metric, ...] = LEGEND) -> str:
    """What each metric means, as a Markdown table for TensorBoard's text page."""
    rows = [f"| `{metric.name}` | {metric.unit} | {metric.meaning} |" for metric in legend]
    return "\n".join(["| metric | unit | meaning |", "|---|---|---|", *rows])
