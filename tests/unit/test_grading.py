"""Grading: answers of every kind (`grading_rows.tsv`), and answers that try to hang, exhaust or kill the grader."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import sympy
import sympy.physics.units  # sympy's own names go through parse_expr when it is loaded, so before the trap is set
from sympy.parsing import sympy_parser

from megatron_atesd.errors import AtesdError, ConfigError
from megatron_atesd.evaluate import grading
from megatron_atesd.evaluate.answer_parts import both_signs, bracket, elements
from megatron_atesd.evaluate.equivalence import READY, fast_verdict, slow_verdict
from megatron_atesd.evaluate.exact_sets import RealSet, combined, interval
from megatron_atesd.evaluate.formula import Unread, read_formula
from megatron_atesd.evaluate.grading import Grader
from megatron_atesd.evaluate.symbolic_algebra import SymbolicAlgebra

HANGS = "2^{2^{2^{30}}}"
HARD = r"\sin\frac{\pi}{6}"  # 0.5, and sympy has to say so
HOSTILE = [
    r"9^{9^{9^9}}",
    r"\binom{10^9}{5\cdot10^8}",
    r"\lfloor e^{e^{100}}\rfloor",
    r"\pm " * 70,
    "1," * 149,
    "{" * 140 + "1" + "}" * 140,
    r"\sqrt{" * 40 + "2" + "}" * 40,
    "(" * 290,
    "100!!!!",
    "\\" * 299,
    "\0 1",
    r"\abcdefgh" * 30 + "!",
]


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(workers=1, timeout_s=20.0) as grader:
        yield grader


@pytest.fixture(scope="module")
def hurried() -> Iterator[Grader]:
    with Grader(workers=1, timeout_s=1.0) as grader:
        yield grader


def boxed(answer: str) -> str:
    return f"so the answer is \\boxed{{{answer}}}."


def grade_one(grader: Grader, answer: str, gold: str) -> bool:
    return grader.grade([(boxed(answer), gold)])[0]


def table() -> dict[str, list[tuple[str, str, bool]]]:
    """Kind → (response, gold, right?) of `grading_rows.tsv`."""
    rows: dict[str, list[tuple[str, str, bool]]] = {}
    for line in (Path(__file__).parent / "grading_rows.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        kind, response, gold, verdict = line.split("\t")
        rows.setdefault(kind, []).append((response, gold, {"right": True, "wrong": False}[verdict]))
    return rows


@pytest.mark.parametrize("kind", table())
def test_the_table_holds_in_both_directions(grader: Grader, kind: str):
    rows = table()[kind]
    there = grader.grade([(boxed(response), gold) for response, gold, _ in rows])
    back = grader.grade([(boxed(gold), response) for response, gold, _ in rows])
    assert [row for row, *verdicts in zip(rows, there, back, strict=True) if verdicts != [row[2]] * 2] == []


def test_the_worker_alone_decides_the_table_too():
    rows = [row for rows in table().values() for row in rows]
    assert [row for row in rows if slow_verdict(row[0], row[1]) != row[2]] == []


def test_both_algebras_agree_on_formulas_made_at_random():
    dice, decided = random.Random(17), 0
    for _ in range(150):
        first, second = made_formula(dice, 2), made_formula(dice, 1)
        for answer, gold in ((first, second), (first, f"2({first})-({first})"), (f"({first})({second})", f"({second})*({first})")):
            verdict = fast_verdict(answer, gold)
            assert verdict in (None, slow_verdict(answer, gold)), (answer, gold)
            decided += verdict is not None
    assert decided > 300


def made_formula(dice: random.Random, depth: int) -> str:
    if depth == 0:
        number = dice.randint(2, 12)
        return dice.choice([f"{number}", rf"\sqrt{{{number}}}", rf"\sqrt[3]{{{number}}}", r"\pi", "i", "x", "y"])
    first, second = made_formula(dice, depth - 1), made_formula(dice, depth - 1)
    form = dice.choice(["({})+({})", "({})-({})", "({})({})", r"\frac{{{}}}{{{}}}", "({})^2-({})", "({})^{{-1}}+({})"])
    return form.format(first, second)


def test_unions_intersections_and_differences_of_exact_sets_are_those_of_their_members():
    dice = random.Random(17)
    places = [Fraction(n, 2) for n in range(-3, 14)]  # the ends are whole numbers: each gap and each end is tried

    def made() -> tuple[RealSet, Callable[[Fraction], bool]]:
        start, end, left, right = dice.randint(0, 5), dice.randint(0, 5), dice.random() < 0.5, dice.random() < 0.5
        low, high = (None if dice.random() < 0.2 else Fraction(end) for end in (start, end))
        above = (lambda x: True) if low is None else (lambda x: x > low) if left else (lambda x: x >= low)
        below = (lambda x: True) if high is None else (lambda x: x < high) if right else (lambda x: x <= high)
        return interval(low, high, left, right), lambda x: above(x) and below(x)

    seen: dict[tuple[bool, ...], RealSet] = {}
    for _ in range(200):
        (first, in_first), (second, in_second), (third, in_third) = made(), made(), made()
        both = combined(any, [first, combined(all, [second, third])])
        members = tuple(in_first(x) or (in_second(x) and in_third(x)) for x in places)
        assert seen.setdefault(members, both) == both
    assert len(seen) == len(set(seen.values())) > 40


@pytest.mark.parametrize("answer", ["(a+b+c+d)^{20}", r"\frac{1}{0}", "2^{2^{20}}", r"\sqrt{10000000000000061}", "1," * 140 + "1"])
def test_what_takes_much_work_is_left_to_the_worker(answer: str):
    assert fast_verdict(answer, f"{answer}+1") is None


def test_the_last_of_two_boxes_counts_alone(grader: Grader):
    assert grader.grade([(r"\boxed{1}, no: \boxed{\frac{1}{2}}", "0.5"), (r"\boxed{0.5}, no: \boxed{3}", "0.5")]) == [True, False]


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ("<think>so \\boxed{3}</think>\n\\boxed{7}", True),
        ("<think>so \\boxed{7}</think>\n\\boxed{3}", False),
        ("so \\boxed{3}</think>\n\\boxed{7}", True),  # the prompt had opened the thinking
        ("<think>so \\boxed{7}</think>\nThe answer is 7.", False),
        ("<think>so \\boxed{7}", False),
        ("<think>a</think>\\boxed{3}<think>no: \\boxed{7}", False),
        ("<think>a</think>\\boxed{3}<think>no</think>\\boxed{7}", True),
        ("<think></think>\\boxed{3} or rather \\boxed{7}", True),
        ("<think>\\boxed{7</think>}", False),
        ("\\boxed{\\boxed{7}}", True),
        ("\\boxed{x=\\boxed{7}}", True),
        ("\\boxed{7}, and not \\boxed{}", True),
        ("\\boxed{7}, and not \\boxed{\\text{}}", True),
        ("\\boxed{7\\}", False),
        ("\\boxed 7", False),
        ("$$\\boxed{7}$$", True),
        ("\\boxed {7}", True),
        ("\\boxed{\n7\n}", True),
    ],
)
def test_an_answer_stands_in_the_last_box_behind_the_thinking(response: str, right: bool):
    with Grader(workers=1, timeout_s=20.0) as grader:  # no process is started: the answers are integers
        assert grader.grade([(response, "7")]) == [right]


def test_an_unbalanced_last_box_does_not_hide_the_balanced_one_before(grader: Grader):
    assert grader.grade([(r"\boxed{7} and then \boxed{8", "7")]) == [True]


def test_no_box_and_an_empty_box_are_wrong(grader: Grader):
    assert grader.grade([("the answer is 7", "7"), (r"\boxed{}", ""), (r"\boxed{ }", "7")]) == [False, False, False]


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        ("7", "7", True),
        ("+07", "7", True),
        ("-7", "7", False),
        ("1,000", "1000", True),
        ("$1000$", "1{,}000", True),
        (r"0.\overline{7}", r"\frac{7}{9}", True),
        ("1/2", "2/3", False),
        (r"\sqrt{2}", "2", False),
        (r"\sqrt{8}", r"2\sqrt{2}", True),
        (r"\ln 2", "2", None),
        ("12.", "12", True),
        (r"\(12\)", "$12$", True),
        ("12", "13", False),
        ("1 2", "12", False),
        ("x", "12", False),
        ("", "12", False),
        ("9" * 301, "9", False),
        ("9" * 301, "9" * 301, True),
        ("9" * 300, "9" * 299, False),
        ("2e-1", "-1+2e", True),  # 0.2, or a formula with e
    ],
)
def test_the_fast_path_decides_integers_and_equal_texts(answer: str, gold: str, verdict: bool | None):
    assert fast_verdict(answer, gold) is verdict


def test_integers_start_no_process(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    with Grader(workers=1, timeout_s=1.0) as grader:
        assert grader.grade([(boxed("12"), "12"), (boxed("1" + "+1" * 200), "201")]) == [True, False]


@pytest.mark.parametrize(
    ("text", "inner"),
    [("(1,2)", "1,2"), (r"\{1\}", "1"), ("[1,2)", "1,2"), ("(1,2)+(3,4)", None), ("f(1,2)", None), ("{1}", None), (r"\frac{1}{2}", None)],
)
def test_brackets_count_only_around_the_whole_text(text: str, inner: str | None):
    around = bracket(text)
    assert (around and around.inner) == inner


def test_plus_minus_stands_for_two_values():
    assert both_signs(r"\sqrt{2 \pm \pi \mp 1}") == [r"\sqrt{2 + \pi - 1}", r"\sqrt{2 - \pi + 1}"]


def test_a_list_has_one_element_a_value():
    assert elements(r"\pm 1, (2, 3) \lor 4") == ["1", "- 1", "(2, 3)", "4"]


@pytest.mark.parametrize(
    "text",
    [
        "1 2", "2102_3", r"x/2y", r"\sqrt12", r"f(2)", "2^3^4", "(1", "1)", "5+", r"\foo", r"\text{if}", "a:b", "{", "1,2", "|x", "", "x_",
        "2^", r"\frac{1}", r"\sum x", "5 &", r"\max", "__import__",
    ],
)  # fmt: skip
def test_a_formula_is_read_whole_or_not_at_all(text: str):
    with pytest.raises(Unread):
        read_formula(text, SymbolicAlgebra())


def test_sympy_is_never_given_text(monkeypatch: pytest.MonkeyPatch):
    parse = sympy_parser.parse_expr

    def refuse(text: str, *arguments: Any, **more: Any) -> object:
        if re.search("[^-+*/().0-9 ]", text):
            pytest.fail(f"parse_expr was given {text!r}")
        return parse(text, *arguments, **more)  # a random number that sympy itself has drawn

    monkeypatch.setattr("sympy.parsing.sympy_parser.parse_expr", refuse)  # sympify calls it for strings
    with pytest.raises(pytest.fail.Exception):
        sympy.sympify("x + 1")  # the trap works
    assert not any(slow_verdict(response, gold) != right for rows in table().values() for response, gold, right in rows if "x" in response)


def test_the_time_limit_kills_a_worker_that_computes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(grading, "_MEMORY_BYTES", 8 << 30)
    with Grader(workers=1, timeout_s=0.5) as grader:
        assert grader.grade([(boxed(r"9^{9^{9}}-1"), "0.5")] * 3) == [False] * 3
        assert (grader.timeouts, grader.crashes) == (3, 0)


@pytest.mark.parametrize("answer", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_answer_is_wrong_and_the_next_one_is_graded(hurried: Grader, answer: str):
    assert hurried.grade([(boxed(answer), "0.5"), (boxed(HARD), "0.5")]) == [False, True]


def test_an_answer_is_never_run_as_code(hurried: Grader, tmp_path: Path):
    touched = tmp_path / "touched"
    calls = [f"__import__('os').mkdir('{touched}')", f"open('{touched}', 'w')", f"eval(\"open('{touched}', 'w')\")"]
    forms = ["{}", r"\mathrm{{{}}}", r"\text{{{}}}", "{}+1", "1, {}", "lambda: {}", "Symbol({})"]
    assert not any(hurried.grade([(boxed(form.format(call)), "0.5") for form in forms for call in calls]))
    assert not touched.exists()


@pytest.mark.parametrize("answer", ["1" + "\u0301" * 250, "\u202e\u200f1/2\u202c", "１０^９^９", "%s%n" * 70, "\ud800"], ids=range(5))
def test_odd_characters_are_wrong_and_harmless(hurried: Grader, answer: str):
    assert hurried.grade([(boxed(answer), "0.5"), (boxed(HARD), "0.5")]) == [False, True]


def test_a_response_of_a_million_braces_is_graded_at_once(grader: Grader):
    started = time.monotonic()
    assert grader.grade([(r"\boxed{" * 100_000 + "{" * 500_000 + "}" * 300_000, "7")]) == [False]
    assert time.monotonic() - started < 10


def test_a_worker_that_was_killed_is_replaced(grader: Grader):
    assert grade_one(grader, HARD, "0.5")
    process = grader._workers[0]._process
    assert process is not None
    process.kill()
    process.wait()
    assert grade_one(grader, r"\cos\frac{\pi}{3}", "0.5")


def test_leaving_the_context_ends_the_processes():
    with Grader(workers=2, timeout_s=5.0) as grader:
        grader.grade([(boxed(HARD), "0.5"), (boxed(r"\ln e^3"), "3")])
        pids = [worker._process.pid for worker in grader._workers if worker._process]
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_worker_without_a_parent_ends_itself():
    command = [sys.executable, "-m", "megatron_atesd.evaluate.equivalence", "0.1", str(8 << 30)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, cwd=Path(__file__).parents[2]) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.read(1) == READY
        process.stdin.write(json.dumps([HANGS, "0.5"]).encode() + b"\n")
        assert process.wait(timeout=30) == -signal.SIGALRM


def test_order_is_kept_over_several_workers():
    with Grader(workers=2, timeout_s=20.0) as grader:
        assert grader.grade([(boxed(rf"\ln e^{{{n}}}"), f"{n % 3}") for n in range(1, 9)]) == [n % 3 == n for n in range(1, 9)]


def test_a_worker_loads_neither_torch_nor_megatron_core():
    code = "import sys, megatron_atesd.evaluate.equivalence; print(sorted({'torch', 'megatron', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "[]"


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with Grader(workers=1, timeout_s=1.0) as grader, pytest.raises(AtesdError, match="sympy"):
        grader.grade([(boxed(HARD), "0.5")])


@pytest.mark.parametrize(("workers", "timeout_s"), [(0, 1.0), (1, 0.0), (1, float("nan"))])
def test_a_useless_setting_is_refused(workers: int, timeout_s: float):
    with pytest.raises(ConfigError, match="grading"):
        Grader(workers, timeout_s)
