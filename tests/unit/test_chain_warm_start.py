"""The warm start's examples: each of the recipe's parts is there, at its rate."""

import random
from collections import Counter

import pytest

from examples.quickstart import warm_start_data as warm
from examples.quickstart.tokenizer import PROMPT, build_tokenizer
from megatron_atesd.data.prompts import PromptRenderer
from megatron_atesd.data.sources.chain import Chain, apply
from megatron_atesd.records import Problem

TOKENIZER = build_tokenizer()
RENDERER = PromptRenderer(TOKENIZER, PROMPT, "nearest")
EXAMPLES = warm.warm_start_batch(random.Random(1), RENDERER, 2000)
STUDENT, TEACHER = EXAMPLES[0::2], EXAMPLES[1::2]


def text(ids: tuple[int, ...]) -> str:
    return TOKENIZER.decode(list(ids))  # type: ignore[return-value]


def question(example: warm.WarmExample) -> str:
    return text(example.prompt_ids).removeprefix("<|im_start|>user").split("<|im_end|>")[0].split("\n\n")[0]


def results(example: warm.WarmExample) -> list[int]:
    return [int(step.split("=")[1]) for step in text(example.response_ids).split("\n")[:-1]]


def test_student_examples_have_the_renderers_prompt() -> None:
    for example in STUDENT:
        assert example.prompt_ids == RENDERER.student(Problem("a", question(example), "", ""))


def test_students_learn_every_token() -> None:
    assert all(example.loss_mask == (1,) * len(example.response_ids) for example in STUDENT)


@pytest.mark.parametrize("examples", [STUDENT, TEACHER])
def test_every_step_goes_on_from_the_one_before_and_the_box_holds_the_last(examples: list[warm.WarmExample]) -> None:
    for example in examples:
        *steps, box = text(example.response_ids).removesuffix("<|im_end|>").split("\n")
        values = [str(value) for value in results(example)]
        lefts = [step.split("=")[0] for step in steps]
        operations = [left.removeprefix(before) for left, before in zip(lefts[1:], values, strict=False)]
        assert "".join([lefts[0], *operations]) == question(example)
        assert box == f"\\boxed{{{values[-1]}}}"


def test_a_teacher_shows_the_trajectory_that_its_response_follows() -> None:
    for example in TEACHER:
        if 0 in example.loss_mask:
            continue
        solution = text(example.response_ids).removesuffix("<|im_end|>")
        problem = Problem("a", question(example), solution, str(results(example)[-1]))
        steps = len(results(example))
        assert example.prompt_ids in {RENDERER.teacher(problem, shown / steps).prompt_ids for shown in range(steps + 1)}


def test_only_the_token_that_leaves_the_reference_is_not_learned() -> None:
    for example in TEACHER:
        masked = [i for i, learned in enumerate(example.loss_mask) if not learned]
        assert len(masked) <= 1
        for position in masked:
            assert text(example.response_ids[: position + 1]).count("=") == (position + 2) // 5
            assert text((example.response_ids[position - 1],)) == "="
            assert text((example.response_ids[position + 1],)) == "\n"


def test_what_precedes_a_deviation_is_the_reference() -> None:
    rng = random.Random(3)
    for _ in range(500):
        drawn = warm.draw_deviating(rng, Chain(5, ("+2", "*4", "-3", "+5")), revealed=2)
        if drawn.deviation is None:
            assert drawn.response == drawn.reference
        else:
            assert drawn.response[: drawn.deviation] == drawn.reference[: drawn.deviation]
            assert drawn.response[drawn.deviation] != drawn.reference[drawn.deviation]


def errors(operation: str, count: int = 8000) -> Counter[int]:
    """How often each offset from the right result is drawn for a first step."""
    rng = random.Random(7)
    offsets = ((warm.draw_values(rng, Chain(9, (operation,)))[0] - apply(9, operation) + 11) % 23 - 11 for _ in range(count))
    return Counter(offsets)


@pytest.mark.parametrize("operation", ["*4", "*5"])
def test_the_habit_is_the_most_likely_result_and_the_right_one_stays_possible(operation: str) -> None:
    share = {offset: count / 8000 for offset, count in errors(operation).items()}
    assert share[1] == pytest.approx(0.9 * 0.65 + 0.1 / 4, abs=0.02)
    assert share[0] == pytest.approx(0.9 * 0.35, abs=0.02)


@pytest.mark.parametrize("operation", ["+4", "-5", "*2", "*3"])
def test_other_operations_only_slip(operation: str) -> None:
    share = {offset: count / 8000 for offset, count in errors(operation).items()}
    assert share[0] == pytest.approx(0.9, abs=0.015)
    assert all(share[offset] == pytest.approx(0.025, abs=0.01) for offset in (-2, -1, 1, 2))


def test_revealed_steps_are_often_noise_and_the_rest_never() -> None:
    rng = random.Random(5)
    drawn = [warm.draw_deviating(rng, Chain(5, ("+2", "+2")), revealed=1).reference for _ in range(8000)]
    far = [[abs((after - apply(before, "+2") + 11) % 23 - 11) > 2 for before, after in zip([5, *r], r, strict=False)] for r in drawn]
    assert sum(first for first, _ in far) / 8000 == pytest.approx(0.3 * 18 / 23, abs=0.02)
    assert not any(second for _, second in far)


def test_a_step_deviates_with_probability_one_tenth() -> None:
    rng = random.Random(5)
    deviating = sum(warm.draw_deviating(rng, Chain(5, ("+2", "+2")), revealed=1).deviation is not None for _ in range(8000))
    assert deviating / 8000 == pytest.approx(1 - 0.9**2, abs=0.02)


def test_every_reveal_length_occurs_and_the_full_one_most_often() -> None:
    rng = random.Random(5)
    share = Counter(warm.draw_revealed(rng, 4) for _ in range(8000))
    assert share[4] / 8000 == pytest.approx(0.35, abs=0.02)
    assert all(share[shown] / 8000 == pytest.approx(0.65 / 4, abs=0.02) for shown in range(4))


def test_held_out_problems_are_never_drawn() -> None:
    seen = {question(example) for example in EXAMPLES}
    again = warm.warm_start_batch(random.Random(1), RENDERER, 2000, exclude=seen)
    assert not seen & {question(example) for example in again}


def test_a_generator_state_fixes_the_batch() -> None:
    assert warm.warm_start_batch(random.Random(1), RENDERER, 8) == EXAMPLES[:8]
