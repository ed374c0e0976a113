"""Sample responses with the KL of each token: <run>/samples.jsonl, and how strongly a token is marked wherever one is shown."""

import json
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from html import escape
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

SAMPLES = "samples.jsonl"
LEVELS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # nats; a mark means the same in every sample and run
_BOLD = 3  # TensorBoard's text has no colours: from this level on a token is bold


@dataclass(frozen=True)
class Sample:
    """One response after the rollout of `update`. tokens: the text of each, control tokens by their names. kl: of each (nats).

    alpha: the exposure, of which the teacher saw `revealed` of `segments`. right: its boxed answer is the reference's, letter by letter.
    """

    update: int
    id: str
    problem: str
    answer: str
    alpha: float
    revealed: int
    segments: int
    tokens: tuple[str, ...]
    kl: tuple[float, ...]
    truncated: bool
    right: bool


def record_of(sample: Sample) -> dict[str, Any]:
    """A line of samples.jsonl; a KL that is not finite is null."""
    return asdict(sample) | {"kl": [value if math.isfinite(value) else None for value in sample.kl]}


def read_samples(run_dir: Path, most: int) -> list[Sample]:
    """Samples of a run, oldest first, its `spread` of `most`; [] where it has none. Lines that hold no sample are left out.

    A long response is a megabyte, and a long run has a thousand: no others are in memory.
    """
    path = run_dir / SAMPLES
    if not path.is_file():
        return []
    with path.open("rb") as file:
        count = sum(1 for _ in file)
        chosen = set(spread(range(count), most))
        file.seek(0)
        return [sample for place, line in enumerate(file) if place in chosen and (sample := _sample(line)) is not None]


def _sample(line: bytes) -> Sample | None:
    try:
        record = json.loads(line)
        values = {field.name: record[field.name] for field in fields(Sample)}
        kl = tuple(math.nan if value is None else float(value) for value in values["kl"])
        tokens = tuple(str(token) for token in values["tokens"])
        return Sample(**(values | {"tokens": tokens, "kl": kl, "alpha": float(values["alpha"])})) if len(tokens) == len(kl) else None
    except (ValueError, TypeError, KeyError):
        return None


def level(kl: float) -> int:
    """0 … len(LEVELS): how strongly a token of this KL is marked."""
    return bisect_right(LEVELS, kl) if math.isfinite(kl) else 0


def outcome(sample: Sample) -> str:
    """right, cut at the limit, or wrong."""
    return "right" if sample.right else "cut at the limit" if sample.truncated else "wrong"


def mean_kl(sample: Sample) -> float:
    """Nats per token."""
    return sum(sample.kl) / max(1, len(sample.kl))


def strongest(sample: Sample, count: int) -> list[int]:
    """Places of the tokens with the largest KL, the largest first."""
    known = [place for place, value in enumerate(sample.kl) if math.isfinite(value)]
    return sorted(known, key=lambda place: -sample.kl[place])[:count]


def heat_strip(sample: Sample, limit: int = 1500) -> str:
    """The response as HTML: a span with the class h1 … h6 around each token that is marked, whose title is its KL. All text is escaped."""
    pieces = [_span(token, value) for token, value in zip(sample.tokens[:limit], sample.kl, strict=False)]
    left = len(sample.tokens) - limit
    return "".join(pieces) + (f"<i> … {left:,} more tokens</i>" if left > 0 else "")


def _span(token: str, kl: float) -> str:
    text = escape(token).replace("\n", "⏎\n")
    return f'<span class="h{level(kl)}" title="{kl:.3g}">{text}</span>' if text and level(kl) else text


def as_tensorboard_text(sample: Sample, limit: int = 1500) -> str:
    """A table and the response in the HTML that TensorBoard's text page lets through; tokens that are strongly marked are bold."""
    rows = {
        "problem": f"{_plain(sample.problem)} ({_plain(sample.id)})",
        "answer": f"{_plain(sample.answer)} (response: {outcome(sample)})",
        "exposure": f"α {sample.alpha:.2f}: {sample.revealed} of {sample.segments} reference segments",
        "KL": f"{mean_kl(sample):.3g} nats per token; bold: a token with {LEVELS[_BOLD - 1]:g} or more",
        "response": "".join(_bold(token, kl) for token, kl in zip(sample.tokens[:limit], sample.kl, strict=False)),
        "largest KL": ", ".join(_told(sample, place) for place in strongest(sample, 8)),
    }
    return "<table>" + "".join(f"<tr><th>{name}</th><td>{text}</td></tr>" for name, text in rows.items()) + "</table>"


def _plain(text: str) -> str:
    """Escaped, without the line ends at which Markdown would look into a block of HTML."""
    return escape(text).replace("\n", "<br>")


def _bold(token: str, kl: float) -> str:
    text = _plain(token)
    return f"<strong>{text}</strong>" if level(kl) >= _BOLD and text else text


def _told(sample: Sample, place: int) -> str:
    return f"<code>{_plain(sample.tokens[place].strip() or '⎵')}</code> {sample.kl[place]:.3g}"


def spread(samples: Sequence[T], count: int) -> list[T]:
    """At most `count` samples, spread over the run: the first, the last, and some between."""
    if len(samples) <= count:
        return list(samples)
    return [samples[round(i * (len(samples) - 1) / (count - 1))] for i in range(count)]
