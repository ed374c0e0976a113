"""Prompts and texts that the model has no room for are refused at the start, for what the run's mode uses and for nothing else."""

from dataclasses import replace
from pathlib import Path

import pytest

from examples.quickstart.tokenizer import PROMPT, build_tokenizer
from examples.quickstart.warm_start import describe_model
from megatron_atesd.config import ExposureConfig, TrainConfig, load_config
from megatron_atesd.data.problems import save_problems
from megatron_atesd.data.prompts import PromptRenderer
from megatron_atesd.data.sources.chain import chain_splits
from megatron_atesd.data.teacher_view import TeacherView
from megatron_atesd.errors import DataError
from megatron_atesd.exposure.modes import highest_exposure, make_mode
from megatron_atesd.records import Problem
from megatron_atesd.train import lengths
from megatron_atesd.train.checks import TrainingInputs, check_before_work
from tests.support.small_run import arguments


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """hf/ without weights, train.jsonl and probe.jsonl."""
    folder = tmp_path_factory.mktemp("inputs")
    describe_model(folder / "hf")
    for name, problems in chain_splits({"train": 8, "probe": 4}, seed=1).items():
        save_problems(problems, folder / f"{name}.jsonl")
    return folder


def read(inputs: Path, *overrides: str) -> tuple[TrainConfig, TrainingInputs]:
    config = load_config(arguments(inputs, inputs / "run", "--parallel.tensor=1", *overrides))
    return config, check_before_work(config, 1)


def check_lengths(config: TrainConfig, given: TrainingInputs, rank: int = 0, size: int = 1) -> None:
    view = TeacherView(given.model.renderer, config.exposure, config.run.seed, given.problems, given.probe_problems)
    lengths.check_lengths(config, given, view, rank, size)


def with_positions(given: TrainingInputs, positions: int) -> TrainingInputs:
    return replace(given, model=replace(given.model, architecture=replace(given.model.architecture, max_positions=positions)))


def needed(given: TrainingInputs, role: str, text: str, alpha: float = 1.0) -> tuple[int, Problem]:
    """Tokens of the longest prompt and text of the probe problems, and whose they are."""
    renderer = given.model.renderer
    found = []
    for problem in given.probe_problems:
        prompt = renderer.student(problem) if role == "student" else renderer.teacher(problem, alpha).prompt_ids
        found.append((len(prompt) + len(renderer.reference(problem) if text == "solution" else renderer.answer(problem)), problem))
    return max(found, key=lambda pair: pair[0])


# What a run scores that needs the most positions: prompt, text, α.
MODES = {
    "learned, solution": (["--exposure.mode=learned", "--exposure.grounding=solution"], "teacher", "solution", 1.0),
    "learned, answer": (["--exposure.mode=learned", "--exposure.grounding=answer"], "teacher", "answer", 1.0),
    "learned, clipped": (["--exposure.mode=learned", "--exposure.clip_high=0.3"], "teacher", "solution", 0.3),
    "fixed": (["--exposure.mode=fixed"], "student", "solution", 1.0),
    "none": (["--exposure.mode=none"], "student", "solution", 1.0),
}


@pytest.mark.parametrize("mode", MODES)
def test_exactly_the_positions_that_the_mode_uses_are_needed(inputs: Path, mode: str) -> None:
    overrides, role, text, alpha = MODES[mode]
    config, given = read(inputs, *overrides)
    tokens, problem = needed(given, role, text, alpha)
    check_lengths(config, with_positions(given, tokens))
    with pytest.raises(DataError, match=rf"{tokens} tokens, must not exceed the model's {tokens - 1} positions: .*data\.probe") as refused:
        check_lengths(config, with_positions(given, tokens - 1))
    assert str(refused.value).startswith(f"problem {problem.id!r}: its {role} prompt")


def test_references_of_training_problems_need_positions_only_where_difficulty_reads_them(inputs: Path) -> None:
    binned = ("--exposure.mode=aligned", "--exposure.bins=2")
    config, given = read(inputs, *binned, "--exposure.difficulty=nll")
    given = replace(given, probe_problems=sorted(given.probe_problems, key=lambda p: len(p.solution))[:1])
    tokens, problem = needed(replace(given, probe_problems=given.problems), "student", "solution")
    assert tokens > needed(given, "student", "solution")[0]
    check_lengths(config, with_positions(given, tokens))
    for others in ((*binned, "--exposure.difficulty=field"), ("--exposure.mode=fixed",)):
        check_lengths(read(inputs, *others)[0], with_positions(given, tokens - 1))
    with pytest.raises(DataError, match=rf"^problem {problem.id!r}: .*{tokens} tokens, must not exceed .*data\.train"):
        check_lengths(config, with_positions(given, tokens - 1))


def test_a_teachers_prompt_beyond_the_limit_is_refused_only_where_it_is_used(inputs: Path, tmp_path: Path) -> None:
    _, given = read(inputs)
    renderer = given.model.renderer
    student = max(len(renderer.student(p)) for p in (*given.problems, *given.probe_problems))
    assert student < min(len(renderer.teacher(p, 1.0).prompt_ids) for p in given.problems)
    check_lengths(*read(inputs, "--exposure.mode=none", f"--prompt.max_length={student}"))
    with pytest.raises(DataError, match=f"its teacher prompt has .* but prompt.max_length is {student}"):
        check_lengths(*read(inputs, "--exposure.mode=fixed", f"--prompt.max_length={student}"))


def test_the_second_prompt_of_a_mix_of_exposures_has_the_same_limit(inputs: Path) -> None:
    _, given = read(inputs)
    longest = max(len(given.model.renderer.teacher(p, 0.0).prompt_ids) for p in (*given.problems, *given.probe_problems))
    settings = ("--exposure.mode=fixed", "--exposure.fixed=0", f"--prompt.max_length={longest}", "--distill.mix_exposure=1")
    check_lengths(*read(inputs, *settings))
    with pytest.raises(DataError, match=f"its teacher prompt has .* but prompt.max_length is {longest}"):
        check_lengths(*read(inputs, *settings, "--distill.target=mix_exposures"))


def test_a_teachers_prompt_is_as_long_as_the_reference_that_is_shown(inputs: Path) -> None:
    """A short question with a long reference and a long one with a short one are both shorter than the longest with its own."""
    _, given = read(inputs)
    short, long = (next(p for p in given.problems if p.metadata["difficulty"] == operations) for operations in (2, 6))
    given, renderer = replace(given, problems=[short, long]), given.model.renderer
    longest = max(len(renderer.teacher(short, 1.0, long).prompt_ids), len(renderer.teacher(long, 1.0, short).prompt_ids))
    settings = ("--exposure.mode=fixed", f"--prompt.max_length={longest}")
    check_lengths(read(inputs, *settings, "--exposure.reference=shuffled")[0], limited(given, longest))
    with pytest.raises(DataError, match=r"its teacher prompt has \d+ tokens"):
        check_lengths(read(inputs, *settings)[0], limited(given, longest))


def limited(given: TrainingInputs, tokens: int) -> TrainingInputs:
    """With a renderer that refuses longer prompts, and no probe problems but two that fit."""
    renderer = PromptRenderer(build_tokenizer(), replace(PROMPT, max_length=tokens), "nearest")
    probe = sorted(given.probe_problems, key=lambda p: len(p.solution))[:2]
    return replace(given, model=replace(given.model, renderer=renderer), probe_problems=probe)


def test_ranks_look_at_every_problem_once(inputs: Path) -> None:
    config, given = read(inputs, "--exposure.mode=none")
    tokens, problem = needed(given, "student", "solution")
    refused = []
    for rank in range(3):
        try:
            check_lengths(config, with_positions(given, tokens - 1), rank, 3)
        except DataError as error:
            refused.append(str(error).split("'")[1])
    too_long = [p.id for p in given.probe_problems if needed(replace(given, probe_problems=[p]), "student", "solution")[0] == tokens]
    assert problem.id in refused
    assert set(refused) <= set(too_long)


@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        ("fixed", {"fixed": 0.3}),
        ("fixed", {"fixed": 0.3, "warmup_updates": 2}),
        ("none", {}),
        ("linear", {"start": 0.9, "end": 0.2}),
        ("cosine", {"start": 0.1, "end": 0.6}),
        ("step", {"levels": [0.1, 0.7, 0.4]}),
        ("linear", {"start": 0.1, "end": 0.6, "warmup_updates": 2, "warmup_exposure": 0.8}),
    ],
)
def test_the_highest_exposure_is_the_highest_that_a_run_proposes(mode: str, settings: dict[str, float]) -> None:
    config = ExposureConfig(mode=mode, **settings)  # pyright: ignore[reportArgumentType]
    decider = make_mode(config, 20, seed=1)
    assert highest_exposure(config) == pytest.approx(max(decider.propose(step).alpha for step in range(20)))


@pytest.mark.parametrize(
    ("settings", "highest"),
    [
        ({"mode": "random", "clip_high": 0.4}, 0.4),
        ({"mode": "learned", "clip_high": 0.4}, 0.4),
        ({"mode": "learned", "clip_high": 0.4, "warmup_updates": 1}, 1.0),
        ({"mode": "learned", "clip_high": 0.4, "progress": "probe_kl"}, 0.5),
        ({"mode": "random", "clip_high": 0.4, "progress": "probe_kl"}, 0.5),
        ({"mode": "fixed", "fixed": 0.2, "progress": "probe_kl"}, 0.5),
    ],
)
def test_drawn_exposures_reach_up_to_the_clip(settings: dict[str, object], highest: float) -> None:
    assert highest_exposure(ExposureConfig(**settings)) == highest  # pyright: ignore[reportArgumentType]
