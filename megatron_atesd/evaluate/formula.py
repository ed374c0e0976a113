r"""A LaTeX formula as a sympy expression, read whole or not at all.

`read_formula` raises Unread for everything that it does not know, for what is left over, and for what can be read in two ways. It builds
sympy objects itself and never hands text to sympy, so an answer cannot reach Python's `eval`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import sympy
from sympy import Expr, Integer, Rational, Symbol

from megatron_atesd.evaluate.answer_text import FUNCTIONS, flat
from megatron_atesd.evaluate.exact_numbers import DECIMAL, exact_number, read_decimal

_TOKEN = re.compile(rf"\s*({DECIMAL}|\\[A-Za-z]+|\\[{{}}|]|[A-Za-z+\-*/^_!%'|,()\[\]{{}}])")
_CLOSING = {"(": ")", "[": "]", "{": "}", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
_LETTERS = r"""
    \alpha \beta \gamma \delta \epsilon \varepsilon \zeta \eta \theta \vartheta \iota \kappa \lambda \mu \nu \xi \rho \sigma \tau
    \upsilon \phi \varphi \chi \psi \omega \Gamma \Delta \Theta \Lambda \Xi \Pi \Sigma \Phi \Psi \Omega \ell \hbar
"""
_GREEK = frozenset(_LETTERS.split())
_ACCENTS = (
    r"\vec",
    r"\hat",
    r"\bar",
    r"\tilde",
    r"\overline",
    r"\mathbb",
    r"\mathcal",
    r"\mathfrak",
    r"\overrightarrow",
    r"\text",
    r"\widehat",
)
_CONSTANTS: Mapping[str, Expr] = {r"\pi": sympy.pi, r"\infty": sympy.oo, "e": sympy.E, "i": sympy.I}
_SPECIAL: Mapping[str, Callable[..., Any]] = {
    "ln": sympy.log,
    "log": lambda value: sympy.log(value, 10),
    "lg": lambda value: sympy.log(value, 10),
    "gcd": sympy.gcd,
    "lcm": sympy.lcm,
    "max": sympy.Max,
    "min": sympy.Min,
}
_SEVERAL = ("gcd", "lcm", "max", "min")
_INVERSES = {name: "a" + name for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")}


class Unread(ValueError):  # noqa: N818 - not an error of anybody's: the text is simply compared as text
    """The text is not a formula that this module understands from end to end."""


def read_formula(text: str) -> Expr:
    """The value of a normalised formula (`answer_text.normalised`); raises Unread."""
    return _Reader(text).whole()


def _function(name: str) -> Callable[..., Any]:
    if name in _SPECIAL:
        return _SPECIAL[name]
    return getattr(sympy, re.sub("^arc?(?=sinh|cosh|tanh)|^arc", "a", name))


class _Reader:
    """Recursive descent: sum → product → signed power → atom."""

    def __init__(self, text: str) -> None:
        self._tokens: list[str] = []
        place, text = 0, text.strip()
        while place < len(text):
            found = _TOKEN.match(text, place)
            if found is None:
                raise Unread(text)
            self._tokens.append(found[1])
            place = found.end()
        self._at = 0
        self._behind_exponent = -1  # where a product may go on with a number: 2^{3}5^{2}
        self._bars = 0  # how many |…| are open: a bar behind a value closes one if there is one

    def whole(self) -> Expr:
        value = self._sum()
        return value if self._peek() == "" else self._fail()

    def _fail(self) -> NoReturn:
        raise Unread(" ".join(self._tokens))

    def _peek(self, ahead: int = 0) -> str:
        return self._tokens[self._at + ahead] if self._at + ahead < len(self._tokens) else ""

    def _next(self) -> str:
        self._at += 1
        return self._peek(-1)

    def _take(self, *tokens: str) -> bool:
        taken = self._peek() != "" and self._peek() in tokens
        self._at += taken
        return taken

    def _expect(self, token: str) -> None:
        if not self._take(token):
            self._fail()

    def _sum(self) -> Expr:
        value = self._product()
        while self._peek() in ("+", "-"):
            sign = -1 if self._next() == "-" else 1
            value = value + sign * self._product()
        return value

    def _product(self) -> Expr:
        value, divided, numbers = self._signed_power(), False, self._is_number()
        while True:
            if self._take("*", r"\cdot", r"\times"):
                value, divided = value * self._signed_power(), False
            elif self._take("/", r"\div"):
                value, numbers = value / self._signed_power(), numbers and self._is_number()
                divided = not numbers  # 3/4x is (3/4)x, but a/2x can be read in two ways
            elif self._starts_factor():
                if divided:
                    self._fail()
                value = value * self._power()
            else:
                return value

    def _is_number(self) -> bool:
        return self._peek(-1)[:1].isdigit()

    def _starts_factor(self) -> bool:
        """Whether a factor follows without a sign; two numbers side by side are no product."""
        token = self._peek()
        if token == "" or token in ("+", "-", ")", "]", "}", ",", "!", "^", "_", "%", "'", r"\rfloor", r"\rceil"):
            return False
        if token == "|":
            return self._bars == 0
        if (token[0].isdigit() or token[0] == ".") and self._peek(-1) not in (")", "!") and self._at != self._behind_exponent:
            self._fail()
        return True

    def _signed_power(self) -> Expr:
        if self._take("-"):
            return -self._signed_power()
        return self._signed_power() if self._take("+") else self._power()

    def _power(self) -> Expr:
        base = self._atom()
        raised = False
        while True:
            if self._take("!"):
                base = sympy.factorial2(base) if self._take("!") else sympy.factorial(base)
            elif self._take("%"):
                base = base / 100
            elif self._peek() == "^" and self._peek(1) == r"\circ":
                self._at += 2
                base = base * sympy.pi / 180
            elif self._peek() == "^" and not raised:
                self._at += 1
                base, raised = base ** self._exponent(), True
                self._behind_exponent = self._at if self._peek(-1) == "}" else -1
            elif self._peek() == "^":
                self._fail()  # a^b^c without braces
            else:
                return base

    def _exponent(self) -> Expr:
        if self._take("-"):
            return -self._exponent()
        return self._atom()

    def _atom(self) -> Expr:
        token = self._next()
        if token[:1].isdigit() or token[:1] == ".":
            return self._number(token)
        if token in _CLOSING:
            return self._bracket(token)
        if token == "|":
            return self._absolute()
        if token == r"\frac":
            return self._argument() / self._argument()
        if token == r"\sqrt":
            return self._root()
        if token == r"\binom":
            return sympy.binomial(self._argument(), self._argument())
        if token[1:] in FUNCTIONS and token[0] == "\\":
            return self._applied(token[1:])
        return self._symbol(token)

    def _number(self, token: str) -> Expr:
        r"""A number, or a mixed number such as 2\frac{1}{3}."""
        value = read_decimal(token)
        if value is None or self._peek() == "_":  # a number in another base
            self._fail()
        if self._peek() == r"\frac" and token.isdigit():
            for length in (7, 5, 3, 2):  # \frac{1}{3}, \frac1{3} and \frac{1}3, \frac 1 3, \frac13
                fraction = "".join(self._tokens[self._at : self._at + length])
                if exact_number(fraction) is not None:
                    value = exact_number(token + fraction) or self._fail()  # 2\frac{7}{3} is a product for some, no number for others
                    self._at += length
                    break
        return Rational(value.numerator, value.denominator)

    def _bracket(self, opening: str) -> Expr:
        bars, self._bars = self._bars, 0
        value = self._sum()
        self._expect(_CLOSING[opening])
        self._bars = bars
        if opening == r"\lfloor":
            return sympy.floor(value)
        return sympy.ceiling(value) if opening == r"\lceil" else value

    def _absolute(self) -> Expr:
        self._bars += 1
        value = self._sum()
        self._expect("|")
        self._bars -= 1
        return sympy.Abs(value)

    def _argument(self) -> Expr:
        r"""What a command takes: a group in braces, or as TeX has it one character (`\frac12`, `\sqrt3`)."""
        if self._take("{"):
            return self._bracket("{")
        token = self._peek()
        if token.isdigit() and len(token) > 1:
            self._tokens[self._at : self._at + 1] = [token[0], token[1:]]
        return self._atom()

    def _root(self) -> Expr:
        degree: Expr = Integer(2)
        if self._take("["):
            degree = self._bracket("[")
        value = self._clear_argument()
        if value.is_negative and degree.is_odd:
            return -((-value) ** (1 / degree))  # the real root; sympy's power is the complex one
        return value ** (1 / degree)

    def _clear_argument(self) -> Expr:
        r"""An argument of which TeX takes no part: `\sqrt12` is √1·2 for TeX, and √12 for most who write it."""
        if self._peek().isdigit() and len(self._peek()) > 1:
            self._fail()
        return self._argument()

    def _applied(self, name: str) -> Expr:
        power: Expr = Integer(1)
        base: Expr | None = None
        while self._peek() in ("^", "_"):
            if self._next() == "^":
                power = self._exponent()
            elif name == "log" and base is None:
                base = self._clear_argument()
            else:
                self._fail()
        if name in _SEVERAL:
            return _function(name)(*self._arguments()) ** power
        if power == -1 and name in _INVERSES:
            name, power = "arc" + name if not name.endswith("h") else "ar" + name, Integer(1)
        value = self._function_argument()
        applied = sympy.log(value, base) if base is not None else _function(name)(value)
        return applied**power

    def _arguments(self) -> list[Expr]:
        self._expect("(")
        values = [self._sum()]
        while self._take(","):
            values.append(self._sum())
        self._expect(")")
        return values

    def _function_argument(self) -> Expr:
        """`(…)` or `{…}` alone; without brackets the product up to the next sign, bracket or function, as in sin 2x cos x."""
        if self._peek() in ("(", "{", "["):
            return self._bracket(self._next())
        value = self._signed_power()
        while self._starts_factor() and self._peek() not in ("(", "[", "{", "*", "/", r"\cdot", r"\times", r"\div", "|"):
            if self._peek()[1:] in FUNCTIONS and self._peek()[0] == "\\":
                break
            value = value * self._power()
        return value

    def _symbol(self, token: str) -> Expr:
        name = token
        if token in _ACCENTS:
            name += "{" + self._literal() + "}"
            if not re.search("[A-Za-z]", name.removeprefix(token)) or (token == r"\text" and len(name) != len(r"\text{m}")):
                self._fail()
            name = name[6] if token == r"\text" else name
        elif not (token.isalpha() and len(token) == 1) and token not in _GREEK and token not in _CONSTANTS:
            self._fail()
        marked = ""
        while self._peek() in ("_", "'"):
            marked += "'" if self._next() == "'" else "_" + self._literal()
        if not marked and name in _CONSTANTS:
            return _CONSTANTS[name]
        if name in ("f", "g", "F", "G") and self._peek() == "(":
            self._fail()  # a function's value, not a product
        return Symbol(name + marked)

    def _literal(self) -> str:
        """A group in braces, or one token, as it is written."""
        if not self._take("{"):
            return self._next() or self._fail()
        depth, start = 1, self._at
        while depth:
            token = self._next() or self._fail()
            depth += (token == "{") - (token == "}")
        return flat(" ".join(self._tokens[start : self._at - 1])) or self._fail()
