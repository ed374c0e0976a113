r"""The grammar of LaTeX formulas: each is read whole or not at all.

`read_formula` raises Unread for everything that it does not know, for what is left over, and for what can be read in two ways. What a
formula becomes is up to an `Algebra`: sympy's expressions in the worker (symbolic_algebra.py), exact values with bounded work in
the evaluating process (exact_algebra.py). Neither is ever handed text, so an answer cannot reach Python's `eval`.
"""

import re
from fractions import Fraction
from typing import Generic, NoReturn

from megatron_atesd.evaluate.algebra import CONSTANTS, Algebra, Value
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
_SEVERAL = ("gcd", "lcm", "max", "min")
_INVERSES = ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")


class Unread(ValueError):  # noqa: N818 - not an error of anybody's: the text is simply compared as text
    """The text is not a formula that this module understands from end to end."""


def read_formula(text: str, algebra: Algebra[Value]) -> Value:
    """The value of a normalised formula (`answer_text.normalised`); raises Unread."""
    return _Reader(text, algebra).whole()


class _Reader(Generic[Value]):
    """Recursive descent: sum → product → signed power → atom."""

    def __init__(self, text: str, algebra: Algebra[Value]) -> None:
        self._algebra = algebra
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

    def whole(self) -> Value:
        value = self._sum()
        return value if self._peek() == "" else self._fail()

    def _whole(self, number: int) -> Value:
        return self._algebra.number(Fraction(number))

    def _negative(self, value: Value) -> Value:
        return self._algebra.times(self._whole(-1), value)

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

    def _sum(self) -> Value:
        value = self._product()
        while self._peek() in ("+", "-"):
            negative = self._next() == "-"
            term = self._product()
            value = self._algebra.plus(value, self._negative(term) if negative else term)
        return value

    def _product(self) -> Value:
        value, divided, numbers = self._signed_power(), False, self._is_number()
        while True:
            if self._take("*", r"\cdot", r"\times"):
                value, divided = self._algebra.times(value, self._signed_power()), False
            elif self._take("/", r"\div"):
                value, numbers = self._algebra.over(value, self._signed_power()), numbers and self._is_number()
                divided = not numbers  # 3/4x is (3/4)x, but a/2x can be read in two ways
            elif self._starts_factor():
                if divided:
                    self._fail()
                value = self._algebra.times(value, self._power())
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

    def _signed_power(self) -> Value:
        if self._take("-"):
            return self._negative(self._signed_power())
        return self._signed_power() if self._take("+") else self._power()

    def _power(self) -> Value:
        base = self._atom()
        raised = False
        while True:
            if self._take("!"):
                base = self._algebra.apply("factorial2" if self._take("!") else "factorial", base)
            elif self._take("%"):
                base = self._algebra.over(base, self._whole(100))
            elif self._peek() == "^" and self._peek(1) == r"\circ":
                self._at += 2
                base = self._algebra.times(base, self._algebra.over(self._algebra.constant(r"\pi"), self._whole(180)))
            elif self._peek() == "^" and not raised:
                self._at += 1
                base, raised = self._algebra.power(base, self._exponent()), True
                self._behind_exponent = self._at if self._peek(-1) == "}" else -1
            elif self._peek() == "^":
                self._fail()  # a^b^c without braces
            else:
                return base

    def _exponent(self) -> Value:
        if self._take("-"):
            return self._negative(self._exponent())
        return self._atom()

    def _atom(self) -> Value:
        token = self._next()
        if token[:1].isdigit() or token[:1] == ".":
            return self._number(token)
        if token in _CLOSING:
            return self._bracket(token)
        if token == "|":
            return self._absolute()
        if token == r"\frac":
            return self._algebra.over(self._argument(), self._argument())
        if token == r"\sqrt":
            return self._root()
        if token == r"\binom":
            return self._algebra.apply("binomial", self._argument(), self._argument())
        if token[1:] in FUNCTIONS and token[0] == "\\":
            return self._applied(token[1:])
        return self._symbol(token)

    def _number(self, token: str) -> Value:
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
        return self._algebra.number(value)

    def _bracket(self, opening: str) -> Value:
        bars, self._bars = self._bars, 0
        value = self._sum()
        self._expect(_CLOSING[opening])
        self._bars = bars
        if opening == r"\lfloor":
            return self._algebra.apply("floor", value)
        return self._algebra.apply("ceiling", value) if opening == r"\lceil" else value

    def _absolute(self) -> Value:
        self._bars += 1
        value = self._sum()
        self._expect("|")
        self._bars -= 1
        return self._algebra.apply("abs", value)

    def _argument(self) -> Value:
        r"""What a command takes: a group in braces, or as TeX has it one character (`\frac12`, `\sqrt3`)."""
        if self._take("{"):
            return self._bracket("{")
        token = self._peek()
        if token.isdigit() and len(token) > 1:
            self._tokens[self._at : self._at + 1] = [token[0], token[1:]]
        return self._atom()

    def _root(self) -> Value:
        degree = self._bracket("[") if self._take("[") else self._whole(2)
        return self._algebra.root(self._clear_argument(), degree)

    def _clear_argument(self) -> Value:
        r"""An argument of which TeX takes no part: `\sqrt12` is √1·2 for TeX, and √12 for most who write it."""
        if self._peek().isdigit() and len(self._peek()) > 1:
            self._fail()
        return self._argument()

    def _applied(self, name: str) -> Value:
        power = self._whole(1)
        base: Value | None = None
        while self._peek() in ("^", "_"):
            if self._next() == "^":
                power = self._exponent()
            elif name == "log" and base is None:
                base = self._clear_argument()
            else:
                self._fail()
        if name in _SEVERAL:
            return self._algebra.power(self._algebra.apply(name, *self._arguments()), power)
        if name in _INVERSES and power == self._whole(-1):
            name, power = "arc" + name if not name.endswith("h") else "ar" + name, self._whole(1)
        value = self._function_argument()
        applied = self._algebra.apply(name, value) if base is None else self._algebra.apply(name, value, base)
        return self._algebra.power(applied, power)

    def _arguments(self) -> list[Value]:
        self._expect("(")
        values = [self._sum()]
        while self._take(","):
            values.append(self._sum())
        self._expect(")")
        return values

    def _function_argument(self) -> Value:
        """`(…)` or `{…}` alone; without brackets the product up to the next sign, bracket or function, as in sin 2x cos x."""
        if self._peek() in ("(", "{", "["):
            return self._bracket(self._next())
        value = self._signed_power()
        while self._starts_factor() and self._peek() not in ("(", "[", "{", "*", "/", r"\cdot", r"\times", r"\div", "|"):
            if self._peek()[1:] in FUNCTIONS and self._peek()[0] == "\\":
                break
            value = self._algebra.times(value, self._power())
        return value

    def _symbol(self, token: str) -> Value:
        name = token
        if token in _ACCENTS:
            name += "{" + self._literal() + "}"
            if not re.search("[A-Za-z]", name.removeprefix(token)) or (token == r"\text" and len(name) != len(r"\text{m}")):
                self._fail()
            name = name[6] if token == r"\text" else name
        elif not (token.isalpha() and len(token) == 1) and token not in _GREEK and token not in CONSTANTS:
            self._fail()
        marked = ""
        while self._peek() in ("_", "'"):
            marked += "'" if self._next() == "'" else "_" + self._literal()
        if not marked and name in CONSTANTS:
            return self._algebra.constant(name)
        if name == "C" and not marked and self._peek() == "(" and (chosen := self._chosen()):
            return self._algebra.apply("binomial", *chosen)
        if name in ("f", "g", "F", "G") and self._peek() == "(":
            self._fail()  # a function's value, not a product
        return self._algebra.symbol(name + marked)

    def _chosen(self) -> list[Value]:
        """n and k of C(n, k); nothing for C(x + 1), a product."""
        start = self._at
        values = self._arguments()
        if len(values) != 2:
            self._at = start
        return values if len(values) == 2 else []

    def _literal(self) -> str:
        """A group in braces, or one token, as it is written."""
        if not self._take("{"):
            return self._next() or self._fail()
        depth, start = 1, self._at
        while depth:
            token = self._next() or self._fail()
            depth += (token == "{") - (token == "}")
        return flat(" ".join(self._tokens[start : self._at - 1])) or self._fail()
