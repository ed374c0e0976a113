r"""Which answer a problem asks for, from its `answer` field and the boxes of its solution."""

import pytest

from megatron_atesd.data.answers import FIELD_AND_BOX, SEVERAL, chosen_answer, same_writing
from megatron_atesd.errors import DataError


def choose(field: str, solution: str) -> tuple[str, list[str]]:
    """The answer, and what was warned of."""
    warned: list[str] = []
    return chosen_answer(field, solution, lambda what, _: warned.append(what)), warned


@pytest.mark.parametrize(
    ("solution", "answer", "warnings"),
    [
        (r"So \boxed{12}.", "12", []),
        (r"First \boxed{12}, again \boxed{12}.", "12", []),
        (r"\boxed{1/2}, that is \boxed{\frac12}", r"\frac12", []),  # one meaning, the last writing
        (r"$n = \boxed{-4}$ or $n = \boxed{11}$.", "-4, 11", [SEVERAL]),
        (r"\boxed{a}, \boxed{b} and \boxed{c}", "a, b, c", [SEVERAL]),
        (r"$\boxed{2}\text{ and }\boxed{8}$", "2, 8", [SEVERAL]),
        (r"$x_1 = \boxed{0}$, $x_{2} = \boxed{7}$", "0, 7", [SEVERAL]),
        (r"解为 $x = \boxed{3}$ 或 $x = \boxed{6}$。", "3, 6", [SEVERAL]),
        ("\\[\\boxed{1}\\]\n\n\\[\\boxed{4}\\]", "1, 4", [SEVERAL]),
        (r"He has \boxed{3} boats, hence \boxed{12} seats.", "12", [SEVERAL]),
        (r"Cars: \boxed{3}. The total is \boxed{5} or \boxed{6}.", "5, 6", [SEVERAL]),
        (r"It is \boxed{9}. Write \boxed{}.", "9", []),
    ],
)
def test_without_a_field_the_final_boxes_are_the_answer(solution: str, answer: str, warnings: list[str]) -> None:
    assert choose("", solution) == (answer, warnings)


@pytest.mark.parametrize(
    ("field", "box"),
    [
        ("16", "16"),
        ("73", "073"),
        ("1/2", r"\frac12"),
        ("0.5", r"\dfrac{1}{2}"),
        ("-3/4", r"-\tfrac{3}{4}"),
        ("1000", "1{,}000"),
        ("12000", "12,000"),
        ("45000", r"45\,000"),
        ("5", r"\$5"),
        ("17", r"x = 17"),
        ("B", r"\text{B}"),
        ("b", r"\mathbf{B}"),
        ("(1, 2)", r"\left(1,2\right)"),
        ("$7$", "7"),
        (r"\boxed{7}", "7"),
        ("−8", "-8"),
        ("16.0", "16"),
        ("2\\sqrt{3}", "2 \\sqrt{3}"),
        ("75%", r"75\%"),
    ],
)
def test_another_writing_of_the_box_is_no_contradiction(field: str, box: str) -> None:
    answer, warnings = choose(field, f"So it is $\\boxed{{{box}}}$.")
    assert warnings == []
    assert same_writing(answer, field.removeprefix("\\boxed{").removesuffix("}") if "boxed" in field else field)


@pytest.mark.parametrize(
    ("field", "box"),
    [("7", "6"), ("0.25", r"\frac12"), ("-5", "5"), ("B", "C"), ("1000", "100"), ("12", "12.5"), ("3/4", "4/3"), ("x", "y")],
)
def test_a_field_that_contradicts_the_box_is_refused(field: str, box: str) -> None:
    with pytest.raises(DataError, match="contradict each other"):
        choose(field, f"So it is $\\boxed{{{box}}}$.")


@pytest.mark.parametrize(
    ("field", "solution"),
    [
        ("12", r"\boxed{12\text{ cm}}"),
        ("2 1/2", r"\boxed{\frac52}"),  # a mixed number is not 21/2
        ("0.333", r"\boxed{\frac13}"),
        ("B", r"\boxed{42}"),
        ("50%", r"\boxed{0.5}"),
        ("1,5", r"\boxed{1.5}"),
        ("\\pi", r"\boxed{3.14}"),
        ("3", r"There are \boxed{3} boats, hence \boxed{12} seats."),
        ("9", r"$x = \boxed{2}$ or $x = \boxed{9}$"),
    ],
)
def test_what_writing_cannot_decide_is_told_and_the_field_counts(field: str, solution: str) -> None:
    assert choose(field, solution) == (field, [FIELD_AND_BOX])


@pytest.mark.parametrize("field", ["2, 9", "9, 2", "x=2 or x=9", "2 and 9"])
def test_a_field_that_lists_the_final_boxes_agrees_with_them(field: str) -> None:
    assert choose(field, r"So $x = \boxed{2}$ or $x = \boxed{9}$.") == (field, [])


@pytest.mark.parametrize("solution", ["none", r"\boxed{}", r"\boxed{\;}", r"\boxed{\text{}}", r"\boxed{\dots}", r"\boxed{~}", r"\boxed{?}"])
def test_without_field_and_filled_box_there_is_no_answer(solution: str) -> None:
    with pytest.raises(DataError, match="no `answer`"):
        choose("", solution)
