"""Section eval: what is refused before the heavy work, and what a resumed run may not change of its evaluations."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_atesd.config import TrainConfig, load_config, validate
from megatron_atesd.data.problems import save_problems
from megatron_atesd.data.sources.chain import chain_splits
from megatron_atesd.errors import AtesdError, CheckpointError, ConfigError, DataError
from megatron_atesd.evaluate.same_settings import SETTINGS
from megatron_atesd.train.checks import TrainingInputs, check_before_work
from megatron_atesd.train.evaluation_files import (
    check_same_evaluations,
    decisive,
    evaluation_folder,
    evaluation_settings,
    read_files,
    with_room,
)
from tests.support.small_run import arguments, save_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a small run, with two files to evaluate on, another of the first one's name, and another of the second one's problems."""
    folder = save_inputs(tmp_path_factory.mktemp("inputs"))
    problems = chain_splits({"a": 3, "b": 2}, seed=7)
    for name, of_file in {**problems, "other/a": problems["b"], "c": problems["b"]}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        save_problems(of_file, folder / f"{name}.jsonl")
    return folder


def settings_of(inputs: Path, names: list[str], *overrides: str) -> TrainConfig:
    files = json.dumps([str(inputs / f"{name}.jsonl") for name in names])
    return load_config(arguments(inputs, inputs / "run", "--parallel.tensor=1", f"--eval.files={files}", *overrides))


def checked(inputs: Path, names: list[str], *overrides: str) -> tuple[TrainConfig, TrainingInputs]:
    config = settings_of(inputs, names, *overrides)
    return config, check_before_work(config, 1)


@pytest.mark.parametrize(
    ("names", "overrides", "said"),
    [
        (["a", "missing"], [], r"^eval\.files has '.*missing\.jsonl', which is no file; give problem files"),
        (["a", "other/a"], [], r"^eval\.files has .*/a\.jsonl and .*/other/a\.jsonl, which metrics would both call 'a'; rename one"),
        (["a"], ["--eval.select=best"], r"^eval\.select is best, but eval\.select_on '' names none of eval\.files; .* \(a\)$"),
        ([], ["--eval.select=best", "--eval.select_on=a"], r"eval\.select_on 'a' names none of eval\.files; .* \(none\)$"),
        (["a"], ["--eval.select_on=a"], r"^eval\.select_on is a, which has no effect with eval\.select last"),
        (["a"], ["--eval.temperature=0", "--eval.samples=2"], r"^eval\.temperature is 0 with eval\.samples 2: all samples would be alike"),
        (["a"], ["--eval.engine=vllm"], r"^eval\.engine is vllm with engine\.name training: .*; set engine\.name to vllm too"),
        (["a"], ["--eval.samples=0"], r"^eval\.samples is 0, must be 1 or more$"),
    ],
)
def test_unsound_settings_are_refused(inputs: Path, names: list[str], overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate(settings_of(inputs, names, *overrides))


@pytest.mark.parametrize("part", ["train", "probe"])
def test_a_problem_of_the_run_is_refused(inputs: Path, part: str) -> None:
    with pytest.raises(DataError, match=rf"^problem .* of eval\.files .* is also in data\.{part} "):
        checked(inputs, ["a", part])


def test_two_files_may_share_problems(inputs: Path) -> None:
    _, found = checked(inputs, ["a", "b", "c"])
    assert [(file.name, len(file.problems)) for file in found.evaluation_files] == [("a", 3), ("b", 2), ("c", 2)]


def test_none_may_share_problems_with_the_one_that_selects(inputs: Path) -> None:
    with pytest.raises(DataError, match=r"^problem .* of eval\.files .*c\.jsonl is also in eval\.files .*b\.jsonl, which selects "):
        checked(inputs, ["a", "b", "c"], "--eval.select=best", "--eval.select_on=b")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["--eval.max_new_tokens=5000"], r"^the \d+ tokens of the prompt of problem '.*' of eval\.files .*; lower eval\.max_new_tokens"),
        (
            ["--eval.max_new_tokens=100", "--engine.cache_gib=0.0002"],
            r"^engine\.cache_gib is 0\.0002, .* the \d+ tokens of the longest prompt of eval\.files .* and 100 of a response need",
        ),
    ],
)
def test_responses_without_room_are_refused(inputs: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(AtesdError, match=said):
        checked(inputs, ["a"], *overrides, "--prompt.max_length=60")


def test_what_is_left_open_is_as_in_the_run(inputs: Path) -> None:
    config = settings_of(inputs, ["a"], "--rollout.max_new_tokens=9", '--rollout.stop=["x"]', "--prompt.student_thinking=true")
    found = evaluation_settings(config)
    assert (found.rollout.max_new_tokens, found.rollout.stop, found.engine.name) == (9, ["x"], "training")
    assert found.prompt.student_thinking
    assert (found.rollout.temperature, found.rollout.top_p, found.rollout.top_k) == (1.0, 0.95, 0)


def test_the_engine_has_room_for_the_longer_of_rollouts_and_evaluations(inputs: Path) -> None:
    for given, room in ((40, 40), (4, 16)):
        assert with_room(settings_of(inputs, ["a"], f"--eval.max_new_tokens={given}")).rollout.max_new_tokens == room
    assert with_room(settings_of(inputs, [], "--eval.max_new_tokens=40")).rollout.max_new_tokens == 16


def test_the_prompts_follow_the_evaluations_thinking_switch(inputs: Path) -> None:
    switches: list[bool | None] = []
    config, found = checked(inputs, ["a"], "--eval.thinking=true")
    renderer = found.model.renderer
    spied, renderer.student = renderer.student, lambda problem, thinking=None: (switches.append(thinking), spied(problem, thinking))[1]
    read_files(config, found.model, found.megatron, [], [])
    assert switches == [True] * 3


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["--eval.samples=8"], "eval.samples is 8, there 4"),
        (["--eval.top_p=0.5", "--eval.seed=2"], "eval.seed is 2, there 1, eval.top_p is 0.5, there 0.95"),
        (["--eval.thinking=true"], "eval.thinking is true, there false"),
    ],
)
def test_a_resumed_run_evaluates_as_it_did(inputs: Path, tmp_path: Path, overrides: list[str], said: str) -> None:
    config, found = checked(inputs, ["a"])
    evaluated(tmp_path, config, found)
    later, again = checked(inputs, ["a"], *overrides)
    with pytest.raises(CheckpointError) as refusal:
        check_same_evaluations(tmp_path, 4, later, again.evaluation_files)
    folder = tmp_path / "eval" / "a" / "step_2"
    assert str(refusal.value) == f"{folder} was evaluated otherwise: {said}; set it back, rename the file, or choose another run.dir"
    check_same_evaluations(tmp_path, 1, later, again.evaluation_files)  # the evaluation after update 2 is none that it goes on from
    check_same_evaluations(tmp_path, 4, config, found.evaluation_files)


def test_a_resumed_run_has_the_same_problems_under_a_name(inputs: Path, tmp_path: Path) -> None:
    config, found = checked(inputs, ["a"])
    evaluated(tmp_path, config, found)
    file = found.evaluation_files[0]
    with pytest.raises(CheckpointError, match=r"was evaluated otherwise: the content of eval\.files differs; "):
        check_same_evaluations(tmp_path, 4, config, [replace(file, problems=file.problems[:2])])


def evaluated(run_dir: Path, config: TrainConfig, found: TrainingInputs) -> None:
    """As the evaluation after update 2 leaves its settings, of a model that is no longer there."""
    file = found.evaluation_files[0]
    folder = evaluation_folder(run_dir, file, 2)
    folder.mkdir(parents=True)
    written = decisive(config, file, Path(config.model.path)) | {"--model": "checkpoints/step_2", "what is in --model": "0"}
    (folder / SETTINGS).write_text(json.dumps(written))
