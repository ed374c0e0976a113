"""What training says about the segments of its references."""

from megatron_atesd.data.summary import segments_account
from megatron_atesd.records import Problem


def problem(id: str, solution: str) -> Problem:
    return Problem(id, "p", solution, "5")


MANY = [problem("a", "One.\n\nTwo.\n\nThree.\n\n\\boxed{5}"), problem("b", "add three\n\\boxed{5}")]
FEW = [problem("one", "$x = 5$"), problem("none", "\\boxed{5}")]


def test_references_with_several_segments_need_no_warning() -> None:
    assert segments_account(MANY) == ("2 to 3, median 2.5", "")


def test_references_with_fewer_than_two_segments_are_counted_and_the_first_is_named() -> None:
    spread, warning = segments_account([*MANY, *FEW])
    assert spread == "0 to 3, median 1.5"
    assert warning.startswith(
        "2 of 4 training references have fewer than two segments (the first: problem 'one'), of which the teacher sees"
    )
