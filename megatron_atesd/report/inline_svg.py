"""A figure as SVG inside an HTML page: real text, and the page's colours, so that it reads in light and in dark. Needs matplotlib."""

import io
import re

from matplotlib import rc_context
from matplotlib.figure import Figure

from megatron_atesd.report.pictures import GRID, INK, MUTED

# colour of the figure → of the page, where it is a variable of its style sheet
_COLOURS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    "#000000": "var(--ink)",
    "#BBBBBB": "var(--line)",
    "#FFFFFF": "var(--paper)",
}


def inline_svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element that is as wide as its place. name: tells its ids from those of other figures, and is its label."""
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(<svg [^>]*?)width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?)height="[^"]*"', r"\1", svg, count=1)
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour.lower(), variable)
    return svg
