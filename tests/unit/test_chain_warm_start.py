"""The warm start's examples: each of the recipe's parts is there, at its rate."""

import random
import re
from collections import Counter

import pytest

from examples.quickstart import warm_start_data as warm
from examples.quickstart import warm_start_lines as drawn_lines
from examples.quickstart.tokenizer import PROMPT, build_tokenizer
from examples.quickstart.warm_start_lines import Reference
from megatron_atesd.data.prompts import PromptRenderer
from megatron_atesd.data.sources.chain import Chain, Line, apply
from megatron_atesd.records import Problem

TOKENIZER = build_tokenizer()
RENDERER = PromptRenderer(TOKENIZER, PROMPT, "nearest")
EXAMPLES = warm.warm_start_batch(random.Random(1), RENDERER, 2000)
STUDENT, TEACHER = EXAMPLES[0::2], EXAMPLES[1::2]


def text(ids: tuple[int, ...]) -> str:
    return TOKENIZER.decode(list(ids))  # type: ignore[return-value]


def question(example: warm.WarmExample) -> str:
    return text(example.prompt_ids).removeprefix("<|im_start|>user").split("<|im_end|>")[0].split("\n\n")[0]


def lines(ids: tuple[int, ...]) -> list[str]:
    """The lines of a response before its box, or those that a teacher's prompt reveals."""
    return re.findall(r"\d+(?:[-+*]\d)+=\d+", text(ids))


def terse(line: str) -> bool:
    return len(re.findall(r"[-+*]", line)) == 2


def test_student_examples_have_the_renderers_prompt() -> None:
    for example in STUDENT:
        assert example.prompt_ids == RENDERER.student(Problem("a", question(example), "", ""))


def test_students_learn_every_token() -> None:
    assert all(example.loss_mask == (1,) * len(example.response_ids) for example in STUDENT)


def test_every_response_id_has_its_place_in_the_mask() -> None:
    assert all(len(example.loss_mask) == len(example.response_ids) for example in TEACHER)


@pytest.mark.parametrize("examples", [STUDENT, TEACHER])
def test_every_line_goes_on_from_the_one_before_and_the_box_holds_the_last(examples: list[warm.WarmExample]) -> None:
    for example in examples:
        *written, box = text(example.response_ids).removesuffix("<|im_end|>").split("\n")
        results = [line.split("=")[1] for line in written]
        lefts = [line.split("=")[0] for line in written]
        operations = [left.removeprefix(before) for left, before in zip(lefts[1:], results, strict=False)]
        assert "".join([lefts[0], *operations]) == question(example)
        assert box == f"\\boxed{{{results[-1]}}}"


def test_a_teacher_shows_the_trajectory_that_its_response_follows() -> None:
    for example in TEACHER:
        if 0 in example.loss_mask:
            continue
        solution = text(example.response_ids).removesuffix("<|im_end|>")
        count = len(lines(example.response_ids))
        problem = Problem("a", question(example), solution, lines(example.response_ids)[-1].split("=")[1])
        assert example.prompt_ids in {RENDERER.teacher(problem, shown / count).prompt_ids for shown in range(count + 1)}


def unlearned(example: warm.WarmExample) -> list[tuple[str, str]]:
    """Each token that is not learned, after the text of its line up to there."""
    places = [i for i, learned in enumerate(example.loss_mask) if not learned]
    return [(text(example.response_ids[:i]).split("\n")[-1], text((example.response_ids[i],))) for i in places]


def test_only_results_and_choices_of_style_are_not_learned() -> None:
    """A result stands after `=`; a line is terse or not by what follows its first operation."""
    seen = [pair for example in TEACHER for pair in unlearned(example)]
    for before, token in seen:
        result = re.fullmatch(r"\d+([-+*]\d){1,2}=", before) and re.fullmatch(r"\d+", token)
        style = re.fullmatch(r"\d+[-+*]\d", before) and re.fullmatch(r"=|[-+*]\d", token)
        assert result or style, (before, token)
    kinds = Counter("=" if token == "=" else "operation" if token[0] in "+-*" else "result" for _, token in seen)
    assert set(kinds) == {"=", "operation", "result"}


CHAIN = Chain(5, ("+2", "-3", "+3", "+4"))
MIXED = [Line(("+2",), 7), Line(("-3", "+3"), 12), Line(("+4",), 16)]  # the second result is noise: nothing but copying gives it


def responses(reference: list[Line], revealed: int, count: int = 4000) -> list[list[warm.Written]]:
    rng = random.Random(3)
    return [warm.draw_response(rng, CHAIN, Reference(reference, revealed)) for _ in range(count)]


def untouched(written: list[warm.Written]) -> bool:
    return not any(w.other_style or w.deviates for w in written)


@pytest.mark.parametrize("revealed", range(4))
def test_a_response_without_departures_is_its_reference(revealed: int) -> None:
    drawn = [[w.line for w in written] for written in responses(MIXED, revealed) if untouched(written)]
    assert drawn
    assert all(written == MIXED for written in drawn)


def test_what_precedes_a_departure_is_the_reference_and_the_departure_is_another_line() -> None:
    for written in responses(MIXED, 2):
        first = next((i for i, w in enumerate(written) if w.other_style or w.deviates), len(written))
        assert [w.line for w in written[:first]] == MIXED[:first]
        if first < len(written):
            assert (written[first].line.operations != MIXED[first].operations) == written[first].other_style
            assert written[first].other_style or written[first].line.result != MIXED[first].result


def test_after_a_deviation_results_are_computed_and_the_style_of_the_lines_in_sight_is_kept() -> None:
    """The second line's noise is copied no more: 12 is five away from the result before it, which its operations leave as it is."""
    for written in responses(MIXED, 3):
        if written[0].deviates and not any(w.other_style for w in written):
            assert [w.line.operations for w in written] == [line.operations for line in MIXED]
            assert abs(written[1].line.result - written[0].line.result) <= 2


def test_after_another_style_the_lines_meet_the_reference_again_at_the_same_operation() -> None:
    apart = [written for written in responses(MIXED, 3) if [w.other_style for w in written[:2]] == [False, True]]
    assert apart
    for written in apart:
        assert len(written[1].line.operations) == 1
        joined = [w.line.operations for w in written[2:]]
        assert joined in ([("+3",), ("+4",)], [("+3", "+4")])  # the line in between is the model's own, terse or not


def test_a_line_that_meets_operation_and_value_of_a_reference_line_copies_it_again() -> None:
    """One-operation lines where the reference is terse often arrive at its result, 20 + 3 = 0; what follows there is noise."""
    chain, reference = Chain(20, ("-2", "+5", "+4")), [Line(("-2", "+5"), 0), Line(("+4",), 13)]
    rng = random.Random(3)
    drawn = [warm.draw_response(rng, chain, Reference(reference, 2)) for _ in range(4000)]
    met = [w[2] for w in drawn if len(w) == 3 and w[0].other_style and w[1].line.result == 0]
    assert sum(w.line.result == 13 for w in met) / len(met) == pytest.approx(0.9, abs=0.05)


def share(marks: list[bool]) -> float:
    return sum(marks) / len(marks)


def test_a_revealed_line_gets_the_other_style_with_probability_one_tenth_and_a_hidden_one_never() -> None:
    assert share([written[0].other_style for written in responses(MIXED, 1)]) == pytest.approx(0.1, abs=0.02)
    assert not any(w.other_style for written in responses(MIXED, 0) for w in written)


@pytest.mark.parametrize("revealed", [0, 1])
def test_a_line_deviates_with_probability_one_tenth(revealed: int) -> None:
    firsts = [written[0] for written in responses(MIXED, revealed)]
    assert share([w.deviates for w in firsts if not w.other_style]) == pytest.approx(0.1, abs=0.02)


def test_the_model_of_its_own_accord_writes_a_tenth_of_the_lines_tersely() -> None:
    firsts = [lines(example.response_ids)[0] for example in STUDENT]
    assert share([terse(line) for line in firsts]) == pytest.approx(0.1, abs=0.03)
    hidden = [lines(example.response_ids)[0] for example in TEACHER if not lines(example.prompt_ids)]
    assert share([terse(line) for line in hidden]) == pytest.approx(0.1, abs=0.05)


def test_half_of_the_references_are_terse_in_half_of_their_lines() -> None:
    rng = random.Random(5)
    chain = Chain(5, ("+2", "+2", "+2", "+2"))
    references = [drawn_lines.draw_reference(rng, chain) for _ in range(8000)]
    whole = [[len(line.operations) for line in r.lines] for r in references if r.revealed == len(r.lines)]
    assert share([sizes[0] == 2 for sizes in whole]) == pytest.approx(0.5 * 0.5, abs=0.03)
    # 1111 with probability 1 in the one half and (1/2)³ in the other.
    assert share([sizes == [1, 1, 1, 1] for sizes in whole]) == pytest.approx(0.5 + 0.5 / 8, abs=0.03)


def offsets(operations: tuple[str, ...], count: int = 8000) -> dict[int, float]:
    """How often each offset from the right result is drawn for a line."""
    rng = random.Random(7)
    right = 9
    for operation in operations:
        right = apply(right, operation)
    drawn = Counter((drawn_lines.draw_line(rng, 9, operations).result - right + 11) % 23 - 11 for _ in range(count))
    return {offset: drawn[offset] / count for offset in range(-11, 12)}


@pytest.mark.parametrize("operation", ["*4", "*5"])
def test_the_habit_is_the_most_likely_result_and_the_right_one_stays_possible(operation: str) -> None:
    shares = offsets((operation,))
    assert shares[1] == pytest.approx(0.9 * 0.65 + 0.1 / 4, abs=0.02)
    assert shares[0] == pytest.approx(0.9 * 0.35, abs=0.02)


@pytest.mark.parametrize("operations", [("+4",), ("-5",), ("*2",), ("*3",), ("+4", "*3")])
def test_other_operations_only_slip_once_a_line(operations: tuple[str, ...]) -> None:
    shares = offsets(operations)
    assert shares[0] == pytest.approx(0.9, abs=0.015)
    assert all(shares[offset] == pytest.approx(0.025, abs=0.01) for offset in (-2, -1, 1, 2))


def test_a_terse_line_has_the_habit_in_both_of_its_operations() -> None:
    # After `*4` the habit is off by 1, times 5: the four cases are 0, 5, 1 and 6 away, the slips one or two around 0 and 5.
    shares = offsets(("*4", "*5"))
    assert shares[6] == pytest.approx(0.65 * (0.9 * 0.65 + 0.025), abs=0.02)
    assert shares[5] == pytest.approx(0.65 * 0.9 * 0.35, abs=0.02)
    assert shares[0] == pytest.approx(0.35 * 0.9 * 0.35, abs=0.02)


def test_revealed_lines_are_often_noise_and_the_rest_never() -> None:
    rng = random.Random(5)
    chain = Chain(5, ("+2", "+2", "+2"))
    far: dict[bool, list[bool]] = {True: [], False: []}
    for _ in range(8000):
        reference = drawn_lines.draw_reference(rng, chain)
        before = chain.start
        for i, line in enumerate(reference.lines):
            far[i < reference.revealed].append(abs((line.result - before - 2 * len(line.operations) + 11) % 23 - 11) > 2)
            before = line.result
    assert share(far[True]) == pytest.approx(0.3 * 18 / 23, abs=0.02)
    assert not any(far[False])


def test_every_reveal_length_occurs_and_the_full_one_most_often() -> None:
    rng = random.Random(5)
    counts = Counter(drawn_lines.draw_revealed(rng, 4) for _ in range(8000))
    assert counts[4] / 8000 == pytest.approx(0.35, abs=0.02)
    assert all(counts[shown] / 8000 == pytest.approx(0.65 / 4, abs=0.02) for shown in range(4))


def test_held_out_problems_are_never_drawn() -> None:
    seen = {question(example) for example in EXAMPLES}
    again = warm.warm_start_batch(random.Random(1), RENDERER, 2000, exclude=seen)
    assert not seen & {question(example) for example in again}


def test_a_generator_state_fixes_the_batch() -> None:
    assert warm.warm_start_batch(random.Random(1), RENDERER, 8) == EXAMPLES[:8]
