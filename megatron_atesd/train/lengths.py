"""Prompts and the texts scored after them must fit: refused before the model's weights are loaded, not amid the run."""

from collections.abc import Iterator

from megatron_atesd.config import TrainConfig
from megatron_atesd.data.teacher_view import TeacherView
from megatron_atesd.errors import DataError
from megatron_atesd.exposure.modes import highest_exposure
from megatron_atesd.records import Problem
from megatron_atesd.train.checks import TrainingInputs

Scored = tuple[str, int, str, int, str]  # prompt and text that are read at once, each with its tokens, and what to do if they are too long


def check_lengths(config: TrainConfig, inputs: TrainingInputs, view: TeacherView, rank: int = 0, size: int = 1) -> None:
    """Raise DataError for a problem whose longest prompt exceeds prompt.max_length, or whose scored texts exceed the model's positions.

    Texts of probe problems, and of training problems the references that exposure.difficulty nll reads.

    Rank `rank` of `size` ranks looks at its share. That prompts leave room for a whole response is a rule of the settings.
    """
    positions = inputs.model.architecture.max_positions
    for problem in inputs.problems[rank::size]:
        student, _ = longest_prompts(config, view, problem)
        if config.exposure.bins > 1 and config.exposure.difficulty == "nll":
            reference, remedy = len(view.renderer.reference(problem)), "leave it out of data.train, or choose another exposure.difficulty"
            _check_room(problem, ("its student prompt", student, "its reference solution", reference, remedy), positions)
    for problem in inputs.probe_problems[rank::size]:
        for scored in scored_texts(config, view, problem):
            _check_room(problem, scored, positions)


def _check_room(problem: Problem, scored: Scored, positions: int) -> None:
    prompt, prompt_tokens, text, text_tokens, remedy = scored
    if prompt_tokens + text_tokens > positions:
        raise DataError(
            f"problem {problem.id!r}: {prompt} ({prompt_tokens} tokens) and {text} ({text_tokens}) are "
            f"{prompt_tokens + text_tokens} tokens, must not exceed the model's {positions} positions: {remedy}"
        )


def longest_prompts(config: TrainConfig, view: TeacherView, problem: Problem) -> tuple[int, int]:
    """Tokens of the student's prompt, and of the teacher's at the highest exposure that the run can have.

    Raises DataError when one of them, or the second prompt of a mix of exposures, exceeds prompt.max_length.
    """
    if config.distill.target == "mix_exposures":
        view.context(problem, config.distill.mix_exposure)
    return len(view.renderer.student(problem)), len(view.context(problem, highest_exposure(config.exposure)).prompt_ids)


def scored_texts(config: TrainConfig, view: TeacherView, problem: Problem) -> Iterator[Scored]:
    """What the probe and the grounding read at once of a probe problem: prompt and text, each with its tokens, and what to do.

    Not the start model's own responses: that a prompt leaves room for a whole response is a rule of the settings.
    """
    student, teacher = longest_prompts(config, view, problem)
    reference, exposure = len(view.renderer.reference(problem)), config.exposure
    leave_out = "leave it out of data.probe"
    yield "its student prompt", student, "its reference solution", reference, leave_out
    if exposure.mode == "learned":
        prompt = f"its teacher prompt at exposure {highest_exposure(exposure):g}"
        if exposure.grounding == "solution":
            yield prompt, teacher, "its reference solution", reference, f"set exposure.grounding to answer, or {leave_out}"
        elif exposure.grounding == "answer":
            yield prompt, teacher, "its boxed answer", len(view.renderer.answer(problem)), f"{leave_out}, or lower exposure.clip_high"
