r"""Answers that are no formula: choices, numbers in another base, congruences, quantities with a unit."""

import re
from fractions import Fraction
from typing import NamedTuple

from megatron_atesd.evaluate.answer_text import flat
from megatron_atesd.evaluate.exact_numbers import exact_number

_CHOICE = re.compile(r"\(?\s*(?:(?:option|choice|answer)\s*:?\s*\(?\s*)?([A-H])\s*(?:\)\s*[.:]?|[.:]|(?=$))\s*(.*)")
_NO_VALUE = re.compile(r"[,;+*/^=<>!_)]|\\(?:lor|land|cdot|times|cup|cap)(?![A-Za-z])|\(?[A-H]\)?$")
_BASED = re.compile(
    r"(-?)\(?0*([0-9][0-9A-Fa-f]*)\)?(?:_\{?\(?(?:base ?)?(?P<index>[0-9]+|[a-z]+)\)?\}?|[ (]*(?:in )?base ?(?P<word>[0-9]+|[a-z]+)\)?)"
)
_BASES = "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_BASE_NAMES = {name: number for number, name in enumerate(_BASES.split(), 2)}
_CONGRUENCE = re.compile(r"(?:(?P<left>.*?)\\equiv)?(?P<right>.*?)\(?\\pmod\{(?P<modulus>.*)\}\)?")
_CURRENCIES = {"＄": "dollar", "€": "euro", "£": "pound", "¥": "yen", "₹": "rupee"}

# One name a unit, then its other spellings; a plural s is taken off first.
_UNITS = {
    other: names.split()[0]
    for names in (
        "cm centimeter centimetre 厘米 см", "m meter metre 米 м", "km kilometer kilometre 千米 公里 км", "mm millimeter millimetre 毫米 мм",
        "inch in inche", "ft foot feet", "yd yard", "mile mi", "g gram 克 г", "kg kilogram 千克 公斤 кг", "mg milligram", "lb pound",
        "oz ounce", "l liter litre", "ml milliliter millilitre", "s second sec 秒", "min minute 分钟 минут", "h hour hr 小时 часов",
        "day 天 дней", "week", "month", "year yr", "mph", "degree deg 度", "radian rad", "dollar usd", "euro", "cent", "yen",
        "% percent pct percentage", "unit", "km/h kph kmh", "a.m am", "p.m pm", "square sq", "cubic cu", "celsius c", "fahrenheit f",
        "cm^2 平方厘米", "m^2 平方米", "cm^3 立方厘米", "m^3 立方米", "rupee", "rouble ruble руб рублей",
        "yuan 元", "个 個", "人", "种", "只", "岁",
    )
    for other in names.split()
}  # fmt: skip
_PLAIN = "|".join(
    sorted((f"{name}s?" for name in _UNITS if name.isalpha() and (len(name) > 1 or not name.isascii())), key=len, reverse=True)
)
_POWER = r"(?:\^(?:\{-?[0-9]\}|[0-9]))?"
_TEXT_UNIT = rf"\\text\{{[^{{}}]*\}}{_POWER}"
_UNIT_TAIL = re.compile(
    rf"(?P<value>.*?[0-9A-Za-z)}}!])\s*(?P<unit>%|\^\\circ\s*(?:{_TEXT_UNIT}|[CF])?"
    rf"|{_TEXT_UNIT}(?:\s*(?:/|\\cdot)?\s*{_TEXT_UNIT})*"
    rf"|(?:(?<=[0-9])|(?<= ))(?:(?:{_PLAIN}){_POWER}(?:(?: ?/ ?| per | )(?:{_PLAIN}|[hs]){_POWER})*)"
    rf"|(?<= )[A-Za-z]{{4,}}(?: [A-Za-z]{{4,}})?)"
)
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
# Words behind a number that say more than what is counted.
_MORE_THAN_A_UNIT = """
    if when where for unless otherwise is are not no none or and mod modulo base than more less fewer times least most many half
    halve third quarter fourth fifth sixth seventh eighth ninth tenth hundredth thousandth squared cubed factorial choose odd even
    positive negative remainder r to each every with without except plus minus over under below above approx approximately about
    only undefined infinite infinitely imaginary prime impossible false wrong true correct max maximum minimum between through until
    after before both either given that by of from divided multiplied added such exactly equals
    cannot never excluded repeating recurring repeated double doubled triple tripled twice halved gross
    smaller larger greater higher lower ago january february march april may june july august september october november december
    inverse reciprocal infinity pi
"""
_NO_UNIT = frozenset(_MORE_THAN_A_UNIT.split())


class Quantity(NamedTuple):
    """A value with its unit, '' for none."""

    value: str
    unit: str


class Congruence(NamedTuple):
    """`left ≡ right (mod modulus)`; left is '' when it is not written."""

    left: str
    right: str
    modulus: str


def choice(text: str) -> tuple[str, str] | None:
    r"""Letter and value of `\textbf{(D)}\ 18`, `D. 18`, `(D)` (value ''), or None."""
    if re.match(r"\(?\s*\\text\{", text):
        text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text, count=1).strip()
    found = _CHOICE.fullmatch(text)
    if found is None or _NO_VALUE.match(found[2]):
        return None
    return found[1], found[2]


def based_number(text: str) -> tuple[str, str] | None:
    r"""Digits and base of `2102_3`, `101_{two}`, `77 \text{ (base 8)}`, both in one spelling, or None."""
    found = _BASED.fullmatch(flat(text))
    if found is None:
        return None
    base = found["index"] or found["word"]
    return found[1] + found[2].upper(), str(_BASE_NAMES.get(base, base))


def congruence(text: str) -> Congruence | None:
    r"""The parts of `n \equiv 2 \pmod{9}`, or None."""
    found = _CONGRUENCE.fullmatch(text)
    if found is None or re.search(r"\\(?:equiv|pmod)(?![A-Za-z])", found["right"] + found["modulus"]):
        return None
    return Congruence((found["left"] or "").strip(), found["right"].strip(), found["modulus"].strip())


def quantity(text: str) -> Quantity:
    r"""Value and unit of `204\text{ cm}`, `\$5`, `90^\circ`, `50\%`, `2 \text{ million}`; what is no unit stays with the value."""
    money = re.fullmatch(r"(-?)\s*([＄€£¥₹])\s*(-?.+)", re.sub("(.+)([＄€£¥₹])", r"\2\1", text))
    if money:
        rest = quantity(money[1] + money[3])
        return Quantity(rest.value, _CURRENCIES[money[2]]) if rest.unit in ("", _CURRENCIES[money[2]]) else Quantity(text, "")
    found = _UNIT_TAIL.fullmatch(text)
    if found is None:
        return Quantity(text, "")
    value, words = found["value"].strip(), _unit_words(found["unit"])
    if words and words[0] in _SCALES:
        number = exact_number(value)
        if number is None:
            return Quantity(text, "")
        value, words = _written(number * _SCALES[words.pop(0)]), words
    stated = {word.lower() for word in re.findall("[A-Za-z]+", found["unit"])}  # as written: less is no plural of les
    known = all(re.sub(r"\^.*", "", word) in _UNITS.values() for word in words)
    nouns = len(words) <= 3 and all(len(word) > 2 and word.isalpha() for word in words)
    if not _NO_UNIT.isdisjoint({*stated, *words}) or not (known or nouns):
        return Quantity(text, "")
    return Quantity(value, " ".join(sorted(words)))


def is_known(unit: str) -> bool:
    """Whether a unit is one of measurement, not just a noun such as *apple*."""
    return all(re.sub(r"\^.*", "", word) in _UNITS.values() for word in unit.split())


def _unit_words(tail: str) -> list[str]:
    """The unit's words in one spelling: *square centimeters* and cm^2 are cm^2, *per* and / are per-words."""
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", tail.replace(r"^\circ", " degree ")).replace("{", "").replace("}", "")
    text = re.sub(r"\s*\^\s*", "^", text.replace(r"\cdot", " "))
    words, power = [], ""
    for word in re.sub(r"\s*(?:/|\bper\b)\s*", " 1/", text).split():
        inverse, word = ("^-", word[2:]) if word.startswith("1/") else ("", word)
        name, _, exponent = word.lower().removesuffix(".").partition("^")
        name = _one_spelling(name)
        if name in ("square", "cubic"):
            power = "2" if name == "square" else "3"
            continue
        exponent = exponent or power
        words.append(name + (f"{inverse}{exponent or 1}" if inverse else f"^{exponent}" if exponent not in ("", "1") else ""))
        power = ""
    return words + (["square^2"] if power else [])


def _one_spelling(name: str) -> str:
    for spelling in (name, name.removesuffix("s")):
        if spelling in _UNITS:
            return _UNITS[spelling]
    return name.removesuffix("s") if len(name) > 3 else name


def _written(number: Fraction) -> str:
    return str(number.numerator) if number.denominator == 1 else f"{number.numerator}/{number.denominator}"
