"""docs/settings.md and docs/metrics.md, written from what the code knows: the settings' dataclasses and the legend of the metrics.

    python tools/make_docs.py

Neither torch nor megatron.core is imported, and nothing in the pages depends on the machine.
"""

import html
import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import get_args, get_origin

import docstring_parser

from megatron_atesd.config.bounds import BOUNDS
from megatron_atesd.config.fields import Setting, all_settings, describe, section_settings, section_title, section_types, spell
from megatron_atesd.config.megatron_sections import PASSED_BOUNDS, RULED_BY, UNSUPPORTED
from megatron_atesd.report.legend import LEGEND, Group, Metric

_MADE = "<!-- Written by `python tools/make_docs.py`. A change by hand is lost, and fails a test. -->"
_DOTTED = re.compile(r"\b[a-z_]+\.[a-z_]+\b")

SETTINGS_INTRO = """\
Every setting of a training, by section. `python tools/train.py --help` prints the same.

- A YAML file (`--config FILE`, may be repeated) wins over the defaults. `--section.key value` wins over the file.
- `[paper]` marks what ATESD or OPSD (v3) publish. `[ours]` marks what they leave open. The other settings are about the machine,
  the files and the output.
- A resumed run may change few of them: `FREE` in `megatron_atesd/train/resume.py` lists these, each with its reason.
- A name that is unknown, a type or a range that does not fit, or two settings that contradict each other cost one line and exit code 2,
  before any heavy work.
- A path may begin with `~`.
"""

PASSED_INTRO = """\
The sections `megatron`, `optimizer` and `ddp` take the fields of megatron.core's own classes `TransformerConfig`, `OptimizerConfig` and
`DistributedDataParallelConfig`, under megatron.core's names. Their documentation is megatron.core's. This project adds rules.
"""

METRICS_INTRO = """\
Every metric that a training can log. The names are those of `<run.dir>/metrics.jsonl`, which has one line per update, and of TensorBoard.

- `<α>` and other words in angle brackets stand for a value in the name.
- With `exposure.bins` above 1, `bin<number>/` before a name means the problems of one difficulty bin, easiest first, such as
  `bin0/distill/kl`.
- A metric that an update did not measure is absent from its line.
- `distill/*` and `student/*` describe the distributions at the distillation temperature (`distill.temperature`; by default that of the
  rollouts). `probe/nll` and `controller/grounding` are at temperature 1.
- `controller/reward` and its parts stay in nats per token with `exposure.normalize_terms` too, so that updates compare.
"""


def settings_page() -> str:
    """The text of docs/settings.md: a table for each section, then what is passed through to megatron.core."""
    sections = [name for name in section_types() if name not in _names()]
    links = [*(f"[{name}](#{name})" for name in sections), "[megatron, optimizer, ddp](#passed-to-megatroncore)"]
    return _page("Settings", SETTINGS_INTRO, "Sections: " + " · ".join(links), *map(_section, sections), _passed_through())


def metrics_page() -> str:
    """The text of docs/metrics.md: a table for each group of the legend."""
    groups = [group for group in get_args(Group) if any(metric.group == group for metric in LEGEND)]
    return _page("Metrics", METRICS_INTRO, *(_group(group, [m for m in LEGEND if m.group == group]) for group in groups))


def pages() -> dict[str, str]:
    """File name below docs/ → its text."""
    return {"settings.md": settings_page(), "metrics.md": metrics_page()}


def _page(title: str, *parts: str) -> str:
    return "\n\n".join([_MADE, f"# {title}", *(part.strip() for part in parts)]) + "\n"


def _section(section: str) -> str:
    about = docstring_parser.parse(section_types()[section].__doc__ or "").long_description
    rows = [
        (f"`{setting.name}`", _words(f"{_kind(setting)}{_range(setting.name)}"), f"`{spell(setting.default)}`", _words(setting.help))
        for setting in section_settings(section)
    ]
    return "\n\n".join(
        [
            f"## {section}",
            _words(section_title(section)),
            *([_words(about)] if about else []),
            _table(("setting", "type and range", "default", "what it is"), rows),
        ]
    )


def _kind(setting: Setting) -> str:
    if not setting.is_path:
        return describe(setting.hint)
    return "a list of paths" if get_origin(setting.hint) is list else "a path"


def _range(name: str) -> str:
    return f"; {BOUNDS[name][0]}" if name in BOUNDS else ""


def _passed_through() -> str:
    rows = [(f"`{name}`", _words(setting.help)) for name, setting in all_settings().items() if name in section_types()]
    decided = [(f"`{field}`", _words(ruler)) for field, ruler in sorted(RULED_BY.items())]
    bounds = [(f"`{name}`", _words(rule)) for name, (rule, _) in sorted(PASSED_BOUNDS.items())]
    only = [(f"`{name}.{field}`", f"`{spell(value)}`") for name, fields in UNSUPPORTED.items() for field, value in sorted(fields.items())]
    return "\n\n".join(
        [
            "## Passed to megatron.core",
            PASSED_INTRO.strip(),
            _table(("section", "what it takes"), rows),
            "These fields are decided by another setting, which is the one to change:",
            _table(("field", "decided by"), decided),
            "These numbers have a range, because torch refuses others only later:",
            _table(("field", "range"), bounds),
            "These fields have one value that this project works with. Another one is refused at the start:",
            _table(("field", "the one value"), only),
        ]
    )


def _group(group: str, metrics: Sequence[Metric]) -> str:
    rows = [(f"`{metric.name}`", _words(metric.unit), _words(metric.meaning)) for metric in metrics]
    return f"## {group.capitalize()}\n\n{_table(('metric', 'unit', 'meaning'), rows)}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _words(text: str) -> str:
    """Text of a docstring as Markdown on one line: what has a meaning there is escaped, and names of settings are code."""
    plain = re.sub(r"([\\*|])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
    return _DOTTED.sub(lambda found: f"`{found[0]}`" if found[0] in _names() else found[0], plain)


@cache
def _names() -> frozenset[str]:
    return frozenset(all_settings())
