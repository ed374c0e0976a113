r"""Pairs of answers with their verdicts, made at random: (answer, gold, right?)."""

import random
from collections.abc import Callable, Mapping

Made = tuple[str, str, bool]
HOSTILE = (
    r"9^{{9^{{9^{{{n}}}}}}}",
    r"\binom{{{n}00000000}}{{5\cdot10^8}}",
    r"\lfloor e^{{e^{{{n}}}}}\rfloor",
    r"{n}!!!!",
    r"(a+b+c+d+{n})^{{20}}",
    "{n}" + r"\pm" * 50,
    "{n}" + "(" * 200,
    "{n}" + ",1" * 140,
)


def made(kind: str, count: int, dice: random.Random) -> list[Made]:
    """`count` different pairs of a kind of KINDS, "mixed" or "hostile"."""
    if kind == "hostile":
        return [(HOSTILE[place % len(HOSTILE)].format(n=100 + place), "0.5", False) for place in range(count)]
    kinds = list(KINDS) if kind == "mixed" else [kind]
    pairs: dict[Made, None] = {}
    for _ in range(50 * count):
        if len(pairs) == count:
            break
        name = kinds[len(pairs) % len(kinds)]
        makers = KINDS[name]
        pairs[makers[dice.randrange(len(makers))](dice, len(pairs) // len(kinds) % 2 == 0)] = None
    return list(pairs)


Maker = Callable[[random.Random, bool], Made]


def _written(gold: str, answer: str, wrong: str) -> Maker:
    """A maker of pairs from texts with {a}, {b}, {c} and arithmetic on them, a < b < c, no two equal."""

    def make(dice: random.Random, right: bool) -> Made:
        a, b, c = sorted(dice.sample(range(2, 1000), 3))
        values = {
            "a": a,
            "b": b,
            "c": c,
            "aa": a * a,
            "ab": a * b,
            "sum": a + b,
            "next": a + 1,
            "thousands": f"{1000 * a + b:,}",
            "plain": 1000 * a + b,
        }
        return (answer if right else wrong).format(**values), gold.format(**values), right

    return make


KINDS: Mapping[str, list[Maker]] = {
    "integers": [_written("{plain}", "{thousands}", "{ab}"), _written("{ab}", "{ab}", "{c}"), _written("{plain}", r"{plain}.", "-{plain}")],
    "fractions": [
        _written(r"\frac{{{a}}}{{{b}}}", "{a}/{b}", "{b}/{a}"),
        _written(r"\frac{{{ab}}}{{{aa}}}", r"\dfrac{{{b}}}{{{a}}}", r"\dfrac{{{c}}}{{{a}}}"),
        _written("{a}.{b}", "{a}.{b}0", "{a}.{c}"),
        _written(r"{c}\frac{{{a}}}{{{b}}}", r"{c}\,\tfrac{{{a}}}{{{b}}}", r"{c}\frac{{{a}}}{{{c}}}"),
        _written(r"{a}.{b}\times10^{{5}}", "{a}.{b}e5", "{a}.{b}e4"),
    ],
    "formulas": [
        _written(r"{a}\sqrt{{{b}}}", r"\sqrt{{{aa}\cdot{b}}}", r"\sqrt{{{ab}}}"),
        _written(r"\frac{{\sqrt{{{b}}}}}{{{b}}}", r"\frac1{{\sqrt{{{b}}}}}", r"\frac{{\sqrt{{{a}}}}}{{{b}}}"),
        _written(r"{ab}\pi-{c}", r"-{c}+{a}\pi\cdot{b}", r"{ab}\pi+{c}"),
        _written(r"(x+{a})(x-{b})", r"x^2+{a}x-{b}x-{ab}", r"x^2+{a}x-{b}x+{ab}"),
        _written(r"y={a}x+{b}", r"{a}x-y+{b}=0", r"{a}x+y+{b}=0"),
        _written(r"{a}^n\cdot{b}", r"{b}\cdot{a}^{{n}}", r"{b}\cdot{a}^{{n+1}}"),
        _written(r"\ln{a}+\ln{b}", r"\ln({ab})", r"\ln({sum})"),
        _written(r"{a}\sin^2x", r"{a}-{a}\cos^2x", r"{a}\cos^2x"),
        _written(r"{a}+{b}i", r"{b}i+{a}", r"{a}-{b}i"),
        _written(r"\frac{{{a}}}{{{b}x+{c}}}", r"{a}/({c}+{b}x)", r"\frac{{{a}}}{{{b}x-{c}}}"),
    ],
    "collections": [
        _written(r"\{{{a},{b},\frac{{1}}{{{c}}}\}}", r"\left\{{\frac1{{{c}}},{b},{a}\right\}}", r"\{{{a},{b},{c}\}}"),
        _written(r"({a},\sqrt{{{b}}},{c})", r"\left({a},\sqrt{{{b}}},{c}\right)", r"({b},\sqrt{{{b}}},{c})"),
        _written(r"[{a},{b})", r"\left[{a},{b}\right)", r"[{a},{b}]"),
        _written(r"(-\infty,{a})\cup({b},\infty)", r"x<{a} \text{{ or }} x>{b}", r"x<{a} \text{{ or }} x>{c}"),
        _written(r"{a}\le x<{b}", r"[{a},{b})", r"({a},{b}]"),
        _written(r"{a}, {b}, {c}", r"{c}, {a} \text{{ and }} {b}", r"{c}, {a}, {next}"),
        _written(
            r"\begin{{pmatrix}}{a}&{b}\\{c}&1\end{{pmatrix}}",
            r"\begin{{bmatrix}}{a}&{b}\\{c}&1.0\end{{bmatrix}}",
            r"\begin{{pmatrix}}{a}&{c}\\{b}&1\end{{pmatrix}}",
        ),
        _written(r"{a}\pm\sqrt{{{b}}}", r"{a}+\sqrt{{{b}}},{a}-\sqrt{{{b}}}", r"{a}\pm\sqrt{{{c}}}"),
    ],
    "text": [
        _written(r"{ab}\text{{ cm}}^2", r"{ab}", r"{ab}\text{{ m}}^2"),
        _written(r"{a}.5\%", r"{a}.5\text{{ percent}}", r"{b}.5\%"),
        _written(r"\$ {a}.50", r"{a}.5\text{{ dollars}}", r"{b}.5\text{{ dollars}}"),
        _written(r"\text{{(B)}}\ {a}", r"{a}", r"\text{{(C)}}\ {a}"),
        _written(r"{a}^\circ", r"{a}\text{{ degrees}}", r"{b}^\circ"),
        _written(r"{a} \text{{ if }} n \text{{ is odd}}", r"{a}\ \text{{if $n$ is odd}}", r"{a}\ \text{{if $n$ is even}}"),
        _written(r"{a}_{{8}}", r"{a}\text{{ base }}8", r"{a}"),
        _written(r"{a}:{b}", r"{a} : {b}", r"{b}:{a}"),
    ],
}  # fmt: skip
