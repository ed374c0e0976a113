r"""Numbers that answers write out, read exactly: integers, decimals, repeating decimals, powers of ten, fractions, mixed numbers."""

import re
from fractions import Fraction

_MAX_EXPONENT = 1000  # 10^1000 has a value; 10^{10^9} would only fill the memory

# A period is written \overline{6}, \bar6, \dot{6}, \dot{1}4285\dot{7} or (6): its digits are those behind the fixed ones.
_PERIOD = r"\\(?:overline|bar) ?(?:\{[0-9]+\}|[0-9])|\\dot ?(?:\{[0-9]\}|[0-9])(?:[0-9]*\\dot ?(?:\{[0-9]\}|[0-9]))?"
DECIMAL = rf"(?:[0-9]+\.[0-9]*(?:{_PERIOD})|\.[0-9]*(?:{_PERIOD})|[0-9]+\.[0-9]+|\.[0-9]+|[0-9]+)"
_DECIMAL_PARTS = re.compile(rf"([0-9]*)(?:\.([0-9]*)({_PERIOD}|\([0-9]+\))?)?")
_GROUPED = re.compile(r"[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_POWER_OF_TEN = re.compile(
    rf"(?:(?P<factor>{DECIMAL}) ?(?:\\cdot|\\times|\*) ?)?10 ?\^ ?(?:\{{ ?(?P<braced>[+-]? ?[0-9]+) ?\}}|(?P<bare>-?[0-9]+))"
)
_EXPONENT = re.compile(rf"(?P<factor>{DECIMAL})[eE](?P<exponent>-?[0-9]+|\+[0-9]{{2,}})")  # 1e+17 is Python's; 2e+3 is a sum with e
_FRACTION = re.compile(
    rf"(?:(?P<whole>[0-9]+) ?(?=\\frac)|(?P<spaced>[0-9]+) (?=[0-9]))?"
    rf"(?:\\frac ?(?:\{{ ?(?P<top>[+-]? ?{DECIMAL}) ?\}}|(?P<top1>[0-9])) ?(?:\{{ ?(?P<bottom>[+-]? ?{DECIMAL}) ?\}}|(?P<bottom1>[0-9]))"
    rf"|(?P<left>{DECIMAL}) ?/ ?(?P<right>{DECIMAL}))"
)


def read_decimal(text: str) -> Fraction | None:
    r"""The value of an unsigned decimal such as `12`, `1.5`, `.5`, `0.1\overline{6}`, `0.(3)`, or None."""
    parts = _DECIMAL_PARTS.fullmatch(text)
    if parts is None or not re.search("[0-9]", text):
        return None
    whole, fixed, tail = (part or "" for part in parts.groups())
    value = Fraction(int(whole + fixed or "0"), 10 ** len(fixed))
    if tail:
        period = re.sub("[^0-9]", "", tail)
        value += Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fixed))
    return value


def exact_number(text: str) -> Fraction | None:
    """The value of a text that is one number and nothing else, or None. `text` is normalised (`answer_text.normalised`)."""
    sign = -1 if text.startswith("-") else 1
    body = text[1:].lstrip() if text[:1] in ("+", "-") else text
    if _GROUPED.fullmatch(body):
        body = body.replace(",", "")
    for read in (read_decimal, _read_power_of_ten, _read_fraction):
        value = read(body)
        if value is not None:
            return sign * value
    return None


def _signed(text: str) -> Fraction:
    value = read_decimal(text.lstrip("+- "))
    assert value is not None  # the patterns let nothing else through
    return -value if text.startswith("-") else value


def _read_power_of_ten(text: str) -> Fraction | None:
    match = _POWER_OF_TEN.fullmatch(text) or _EXPONENT.fullmatch(text)
    if match is None:
        return None
    groups = match.groupdict()
    exponent = int((groups.get("braced") or groups.get("bare") or groups.get("exponent") or "").replace(" ", ""))
    if abs(exponent) > _MAX_EXPONENT:
        return None
    return _signed(groups["factor"] or "1") * Fraction(10) ** exponent


def _read_fraction(text: str) -> Fraction | None:
    match = _FRACTION.fullmatch(text)
    if match is None:
        return None
    top = _signed(match["top"] or match["top1"] or match["left"])
    bottom = _signed(match["bottom"] or match["bottom1"] or match["right"])
    whole = match["whole"] or match["spaced"]
    if bottom == 0 or (whole and not 0 < top < bottom):
        return None
    return top / bottom + int(whole or 0)
