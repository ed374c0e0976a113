"""What of a reference each exposure shows."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_atesd.data.reveal import reference_text, reveal, revealed_count, split_reference
from megatron_atesd.records import Problem


def problem(solution: str, answer: str = "5") -> Problem:
    return Problem("id", "p", solution, answer)


def segments(solution: str) -> list[str]:
    return list(split_reference(problem(solution)).segments)


PIECES = ["a", "1. ", "Step 2: ", "x = 3.5", ". ", "\n", "\n\n", " ", "$", "$$", "\\[", "\\]", "\\boxed{5}", "\\boxed{", "}", "."]


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=25).map("".join))
def test_segments_and_tail_are_the_reference_to_the_character(solution: str) -> None:
    reference = split_reference(problem(solution))
    assert "".join(reference.segments) + reference.tail == reference_text(problem(solution))


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=25).map("".join))
def test_every_segment_shows_something(solution: str) -> None:
    assert all(segment.strip() for segment in segments(solution))


def test_blank_lines_separate_steps() -> None:
    assert segments("One. Two.\n\nThree.\n\n\\boxed{5}") == ["One. Two.\n\n", "Three.\n\n"]


@pytest.mark.parametrize("marker", ["Step 2: ", "2. ", "2) ", "(2) ", "## ", "**Step 2** "])
def test_a_line_that_opens_with_a_step_marker_begins_a_step(marker: str) -> None:
    assert segments(f"1. One. More.\n{marker}Two.\n\\boxed{{5}}") == ["1. One. More.\n", f"{marker}Two.\n"]


def test_a_line_that_opens_with_a_minus_or_a_decimal_is_no_step() -> None:
    assert segments("A. B\n\n- 3x\n2.5y\n\\boxed{5}") == ["A. B\n\n", "- 3x\n2.5y\n"]


def test_sentences_and_lines_come_when_there_is_one_step() -> None:
    assert segments("It is 2.5 now. So (add 1.) we get more!\n3+2=5\n\\boxed{5}") == [
        "It is 2.5 now. ",
        "So (add 1.) ",
        "we get more!\n",
        "3+2=5\n",
    ]


def test_words_come_when_there_is_one_sentence() -> None:
    assert segments("add three\n$\\boxed{5}$") == ["add ", "three\n"]


def test_a_chain_has_one_segment_a_step() -> None:
    assert segments("15+3=18\n18-3=15\n15*2=7\n\\boxed{7}") == ["15+3=18\n", "18-3=15\n", "15*2=7\n"]


@pytest.mark.parametrize(
    "box", ["\\boxed{5}", "$\\boxed{5}$.", "$$\\boxed{5}$$\n", "\\[\n\\boxed{5}\n\\]", "**\\boxed{5}**", "\\(\\boxed{5}\\)"]
)
def test_an_answer_on_lines_of_its_own_is_no_segment(box: str) -> None:
    reference = split_reference(problem(f"One.\n\n$$x$$\n\n{box}"))
    assert (reference.segments, reference.tail, reference.answer) == (("One.\n\n", "$$x$$\n\n"), box, "\\boxed{5}")


def test_an_answer_inside_the_last_step_hides_with_it() -> None:
    inside = problem("One.\n\nSo x is $\\boxed{5}$.")
    assert reveal(inside, 0.5, "floor").text == "One.\n\n"
    assert reveal(inside, 1.0, "floor").text == inside.solution


def test_words_after_the_box_keep_it_inside_its_step() -> None:
    assert segments("One.\n\n\\boxed{5}\n\nas claimed.") == ["One.\n\n", "\\boxed{5}\n\n", "as claimed."]


def test_no_exposure_shows_the_boxed_answer_and_nothing_else() -> None:
    shown = reveal(problem("So one. So two.\n\\boxed{5}"), 0.0, "nearest")
    assert (shown.text, shown.answer, shown.revealed, shown.segments) == ("", "\\boxed{5}", 0, 2)


@pytest.mark.parametrize("solution", ["One.\nTwo.\n\\boxed{5}", "Just one", "\\boxed{5}", "So it is \\boxed{5}!"])
def test_full_exposure_shows_the_whole_reference(solution: str) -> None:
    shown = reveal(problem(solution), 1.0, "floor")
    assert shown.text + split_reference(problem(solution)).tail == reference_text(problem(solution))


def test_a_missing_box_is_appended_from_the_answer() -> None:
    assert reference_text(problem("It is five.\n", "5")) == "It is five.\n\\boxed{5}"


@pytest.mark.parametrize("solution", ["\\boxed{\\frac12}", "Half.", "Half. Put it in \\boxed{}.", "One \\boxed{3}, then \\boxed{0.5}."])
def test_the_teacher_is_shown_the_answer_that_is_graded(solution: str) -> None:
    assert split_reference(problem(solution, answer="1/2")).answer == "\\boxed{1/2}"


@pytest.mark.parametrize("box", ["\\boxed{}", "\\boxed{ }", "\\boxed{\\,}", "\\boxed{\\text{ }}", "\\boxed{\\ldots}", "\\boxed{...}"])
def test_a_box_to_be_filled_in_is_no_answer_of_the_reference(box: str) -> None:
    text = f"Two spiders.\nWrite the result as {box}."
    assert reference_text(problem(text, "16")) == f"{text}\n\\boxed{{16}}"


def test_a_reference_that_is_only_its_answer_has_no_segment() -> None:
    assert reveal(problem("$\\boxed{5}$"), 1.0, "floor").segments == 0


@given(numerator=st.integers(0, 100), segments=st.integers(0, 60))
def test_counts_are_those_of_exact_arithmetic(numerator: int, segments: int) -> None:
    exact = Fraction(numerator, 100) * segments
    assert revealed_count(numerator / 100, segments, "floor") == exact.__floor__()
    assert revealed_count(numerator / 100, segments, "nearest") == (exact + Fraction(1, 2)).__floor__()


def test_a_product_just_below_a_whole_number_counts_as_that_number() -> None:
    assert 0.29 * 100 < 29
    assert revealed_count(0.29, 100, "floor") == 29


@given(st.floats(0, 1), st.integers(0, 500), st.sampled_from(["floor", "nearest"]))
def test_counts_stay_within_the_segments(alpha: float, segments: int, rounding: str) -> None:
    assert 0 <= revealed_count(alpha, segments, rounding) <= segments  # type: ignore[arg-type]
