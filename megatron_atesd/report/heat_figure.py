"""A sample response as a picture: each token on a ground whose colour is its KL. Needs matplotlib (the `plots` extra)."""

import warnings
from collections.abc import Iterator

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from megatron_atesd.report.pictures import INK, MUTED, PALETTE
from megatron_atesd.report.samples import LEVELS, Sample, level, outcome

COLUMNS = 56  # characters a line
_LINE, _WIDTH = 0.2, 5.7  # inches: height of a line, width of the picture
_EM = 0.602  # width of a monospaced character
STRENGTHS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 0.95)  # opacity of each level


def heat_figure(sample: Sample, lines: int = 24) -> Figure:
    """The response, wrapped, at most `lines` lines of it, below a line that says what it is and a scale."""
    cells = [cell for cell in _cells(sample) if cell[0] < lines]
    rows = max((row for row, *_ in cells), default=0) + 1
    with rc_context({"text.parse_math": False, "font.family": "DejaVu Sans Mono"}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that the font lacks
        figure = Figure(figsize=(_WIDTH, (rows + 3) * _LINE), dpi=130, facecolor="white")
        axes = figure.add_axes((0.01, 0.0, 0.98, 1.0))
        axes.set_axis_off()
        axes.set_xlim(0, COLUMNS)
        axes.set_ylim(rows, -3)
        size = 0.98 * _WIDTH * 72 / COLUMNS / _EM
        title = f"update {sample.update}, {sample.id[:20]}: {outcome(sample)}, α {sample.alpha:.2f}"
        axes.text(0, -2.4, title, fontsize=size, color=INK, fontweight="bold", va="center")
        _draw_scale(figure, size)
        for row, column, text, strength in cells:
            axes.add_patch(Rectangle((column, row), len(text), 0.94, color=PALETTE[1], alpha=STRENGTHS[strength], linewidth=0))
            axes.text(column, row + 0.5, text, fontsize=size, color=INK, va="center")
        figure.canvas.draw_idle()
    return figure


def _draw_scale(figure: Figure, size: float) -> None:
    axes, column = figure.axes[0], 0.0
    for number, bound in enumerate((0.0, *LEVELS)):
        text = f" ≥{bound:g} " if number else " nats: "
        axes.add_patch(Rectangle((column, -1.5), len(text), 0.9, color=PALETTE[1], alpha=STRENGTHS[number], linewidth=0))
        axes.text(column, -1.05, text, fontsize=size * 0.9, color=INK if number else MUTED, va="center")
        column += len(text)


def _cells(sample: Sample) -> Iterator[tuple[int, int, str, int]]:
    """(row, column, text, level) of each piece of a token that stands on one line."""
    row = column = 0
    for token, kl in zip(sample.tokens, sample.kl, strict=True):
        for number, part in enumerate(token.replace("\t", " ").split("\n")):
            if number:
                yield row, min(column, COLUMNS - 1), "⏎", level(kl)
                row, column = row + 1, 0
            while part:
                if column >= COLUMNS:
                    row, column = row + 1, 0
                piece, part = part[: COLUMNS - column], part[COLUMNS - column :]
                yield row, column, "".join(letter if letter.isprintable() else "·" for letter in piece), level(kl)
                column += len(piece)
