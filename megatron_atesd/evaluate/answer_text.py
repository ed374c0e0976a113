r"""One spelling for each thing that answers write in several ways. Nothing is dropped here that has a meaning.

`normalised` is what the readers of numbers, formulas and lists take; `flat` is what is compared when no reader understands an answer.
"""

import re

_FUNCTION_NAMES = """
    sin cos tan cot sec csc sinh cosh tanh coth arcsin arccos arctan arccot arcsec arccsc
    arsinh arcosh artanh arcsinh arccosh arctanh ln log lg exp gcd lcm max min
"""
FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_WORD_OF_TWO = re.compile("[A-Za-z]{2,}")
_COUNTED = re.compile("([0-9][0-9.]*) ([A-Za-z].*)")
_MATH_MARKS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("`", "`"))
_DOTS = re.compile(r"\\(?:[lc]?dots|dots[bcimo])(?![A-Za-z])|\.\.\.+|…|⋯")

_PARTS_OF_SIGNS = ("12", "13", "23", "14", "34", "15", "25", "35", "45", "16", "56", "18", "38", "58", "78")
_CHARACTERS = str.maketrans(
    {
        "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": r"\div ", "∗": "*",
        "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "∓": r"\mp ", "≡": r"\equiv ", "≈": r"\approx ",
        "∅": r"\emptyset ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}",
        "°": r"^\circ ", "√": r"\sqrt ", "º": r"^\circ ", "′": "'", "⁄": "/", "٫": ".", "٬": ",",
        "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "λ": r"\lambda ", "φ": r"\phi ", "ω": r"\omega ",
        **{sign: rf"\frac{{{parts[0]}}}{{{parts[1]}}}" for sign, parts in zip("½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞", _PARTS_OF_SIGNS, strict=True)},
        **{chr(full): chr(full - 0xFEE0) for full in range(0xFF01, 0xFF5F) if full != 0xFF04}, "、": ",",  # in Chinese and Japanese
        "\u2009": r"\,", "\u202f": r"\,", "\u00a0": r"\,", "\u2062": "",
    }
)  # fmt: skip

_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_OTHER_DIGIT = re.compile("(?![0-9])\\d")  # of any script
_ON_THE_LINE = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻₀₁₂₃₄₅₆₇₈₉", "0123456789+-0123456789")
_REPEATED = re.compile(r"(?<![0-9.])([0-9]*\.[0-9]*?)([0-9]{1,6}?)\2{2,}\\dots")
_TURNED_BRACKETS = re.compile(r"(^|\\cup\s*|\\in\s*)([\[\]])([^\[\]]*,[^\[\]]*)([\[\]])(?=\s*(?:$|\\cup))")

_SEPARATOR = r"(?:\\[,;:> ]|\\thinspace ?|~|\{,\}|\{ ?\\, ?\}|\{\\ \}|,\\! ?| )"
_DIGIT_GROUPS = re.compile(
    rf"(?<![0-9.,A-Za-z])(?<![0-9] )[1-9][0-9]{{0,2}}(?P<gap>{_SEPARATOR})[0-9]{{3}}(?:(?P=gap)[0-9]{{3}})*(?![0-9])"
)
_DECIMAL_COMMA = re.compile(r"(?<![0-9.])([0-9]+)\{,\}(?=[0-9]|\\overline|\\bar|\\dot)")
_DECIMAL_GROUPS = re.compile(r"(?<=[0-9])\\[,;: ](?=[0-9]{3}(?![0-9]))")

_SPELLINGS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?(?=\W|$)", ""),
        (r"\\(?:displaystyle|textstyle|limits|nolimits|hfill|small|large|Large|LARGE|huge|Huge|underline)(?![A-Za-z])|\\!", ""),
        (r"\\(?:text)?color\s*\{[A-Za-z]+\}", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
        (r"(?<!\\)\\(?:[,;:> ]|(?:thinspace|quad|qquad|enspace)(?![A-Za-z]))|~", " "),
        (r"\\(?:leq|leqslant)(?![A-Za-z])|<=|\\le(?![A-Za-z])", r"\\le "),
        (r"\\(?:geq|geqslant)(?![A-Za-z])|>=|\\ge(?![A-Za-z])", r"\\ge "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\neq?(?![A-Za-z])|\\not ?=", r"\\ne "),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\[lr]?vert(?![A-Za-z])", "|"),
        (r"\\(?:backslash|smallsetminus)(?![A-Za-z])", r"\\setminus "),
        (r"\\(?:varnothing|empty)(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset"),
        (r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![A-Za-z])|\\degree(?![A-Za-z])", r"^\\circ "),
        (r"\^\s*\{\s*\\prime\s*\}|\^\s*\\prime(?![A-Za-z])", "'"),
        (r"\\(?:R|reals)(?![A-Za-z])|\\Bbb ?R", r"\\mathbb{R}"),
        (r"\\ast(?![A-Za-z])", "*"),
        (r"\*\*", "^"),
        (r"\\mid(?![A-Za-z])", "|"),
        (r"\\colon(?![A-Za-z])|\{:\}", ":"),
        (r"\{([^{}]*?)\\choose(?![A-Za-z])([^{}]*)\}", r"\\binom{\1}{\2}"),
        (r"\{((?:[^{}]|\{[^{}]*\})*?)\\over(?![A-Za-z])((?:[^{}]|\{[^{}]*\})*)\}", r"\\frac{\1}{\2}"),
        (r"\\text\{all real(?:s| numbers)\}", r"\\mathbb{R}"),
        (r"(?<![A-Za-z])per cent(?![A-Za-z])", "percent"),
        (r"(?<=[0-9]) ?AM(?![A-Za-z])", " am"),
        (r"(?<=[0-9]) ?PM(?![A-Za-z])", " pm"),
        (r"\\%", "%"),
        (r"\\\$", "＄"),  # currency, kept apart from the mark of mathematics
        (r"\$", ""),
        (r"(?<![\\A-Za-z])(sqrt|pi|infinity|sin|cos|tan|log|ln|exp)(?![A-Za-z])", r"\\\1 "),
        (r"\\infinity(?![A-Za-z])", r"\\infty"),
    )
]
_STYLED = re.compile(
    r"\\(text|textbf|textit|textrm|textsf|textnormal|mathrm|mathbf|mathit|mathsf|operatorname\*?|mbox|hbox|bm|boldsymbol)\s*\{([^{}]*)\}"
)
_SPOKEN_MODULUS = re.compile(
    r"\(\s*(?:\\bmod|\\mod|\\text\{mod\}|mod)(?![A-Za-z])\s*([^()]*)\)"
    r"|(?:\\mod|\\pmod|\\text\{mod\})(?![A-Za-z])\s*(\{[^{}]*\}|[0-9]+|[A-Za-z])"
)
_OLD_STYLE = re.compile(r"\{\s*\\(?:rm|bf|it|sf)\s+([^{}]*)\}")
_WORD = re.compile(r"(?<![\\A-Za-z])(?:[A-Za-z]{4,}|[Yy]es|YES|[Nn]o|NO)(?![A-Za-z])")


def plain(answer: str) -> str:
    """The answer without the marks around it: mathematics delimiters, a final full stop, repeated white space."""
    text = " ".join(_DOTS.sub(r"\\dots ", answer).split()).removesuffix(".").strip()
    for opening, closing in _MATH_MARKS:
        inner = text[len(opening) : -len(closing)]
        if len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing) and opening not in inner:
            return inner.strip().removesuffix(".").strip()
    return text


def _without_style(found: re.Match[str]) -> str:
    r"""`\mathrm{e}` is e and `\operatorname{arctan}` is `\arctan`; words stay `\text{…}`, in small letters."""
    command, words = found[1], " ".join(found[2].split())
    if words in FUNCTIONS:
        return f"\\{words} "
    if words in ("e", "i") or (len(words) == 1 and command in ("mathbf", "mathit", "textbf", "textit", "bm", "boldsymbol")):
        return f" {words}"  # \pi\mathrm{i} is not \pii
    if counted := _COUNTED.fullmatch(words):
        return f" {counted[1]} \\text{{{counted[2]}}}"  # \text{3 cm} is 3 \text{cm}
    if not re.search("[A-Za-z]", words.replace(r"\circ", "")):
        return f" {words} "
    return f"\\text{{{words if len(words) == 1 else _WORD_OF_TWO.sub(lambda word: word[0].lower(), words)}}}"


def _on_the_keyboard(text: str) -> str:
    """Characters and digits of other scripts, raised and lowered ones, as LaTeX writes them."""
    text = _RAISED.sub(lambda found: f"^{{{found[0].translate(_ON_THE_LINE)}}}", text)
    text = _LOWERED.sub(lambda found: f"_{{{found[0].translate(_ON_THE_LINE)}}}", text)
    return _OTHER_DIGIT.sub(lambda found: str(int(found[0])), text.translate(_CHARACTERS))


def _as_round_brackets(found: re.Match[str]) -> str:
    """The open ends of ]0, 1[ as in (0, 1)."""
    return found[1] + ("(" if found[2] == "]" else "[") + found[3] + (")" if found[4] == "[" else "]")


def normalised(answer: str) -> str:
    """`answer` in one spelling: commands, spaces, digit groups, characters that have a LaTeX command."""
    text = plain(answer)
    if not text.isascii():
        text = _on_the_keyboard(text)
    text = _REPEATED.sub(r"\1\\overline{\2}", text)
    text = _DIGIT_GROUPS.sub(lambda found: re.sub("[^0-9]", "", found[0]), text)
    text = _DECIMAL_GROUPS.sub("", _DECIMAL_COMMA.sub(r"\1.", text))
    text = _STYLED.sub(_without_style, _OLD_STYLE.sub(r"\\mathrm{\1}", text))
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    if r"\equiv" in text:
        text = text.replace(r"\bmod", r"\pmod")
    text = _TURNED_BRACKETS.sub(_as_round_brackets, text)
    text = _SPOKEN_MODULUS.sub(lambda found: f"\\pmod{{{(found[1] or found[2] or '').strip(' {}')}}}", text)
    return " ".join(text.split()).removeprefix("=").lstrip()


def flat(text: str) -> str:
    r"""A normalised text for comparing as text: `\text{…}` opened, words in small letters, spaces only where two words or numbers meet."""
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    text = _WORD.sub(lambda word: word[0].lower(), text)
    text = re.sub(r"(?<=[\^_])\{([A-Za-z0-9])\}", r"\1", text)
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub("(?<![A-Za-z]) (?![0-9])|(?<![0-9]) (?![A-Za-z])", "", text)
