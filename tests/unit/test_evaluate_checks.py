"""What an evaluation refuses before process groups and a model exist: one ConfigError or DataError that names the flag or setting."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.refusals import HeavyWorkError, refusal, save_description

POSITIONS = 256
SESSION = "megatron_atesd.evaluate.evaluation.session_of"
Evaluate = Callable[..., str]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_description(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def evaluate(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Evaluate:
    """What tools/evaluate.py refuses with, see `refusal`."""

    def run(*flags: str, world_size: int = 1) -> str:
        monkeypatch.setenv("WORLD_SIZE", str(world_size))
        given = {"--model": inputs / "hf", "--data": inputs / "test.jsonl", "--out": tmp_path / "out", "--max-new-tokens": 48}
        return refusal("evaluate.py", SESSION, given, flags, monkeypatch, capsys)

    return run


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--samples", "0"], "--samples is 0, must be 1 or more"),
        (["--seed", "-1"], "--seed is -1, must be 0 or more and below 2^63"),
        (["--seed", str(2**63)], f"--seed is {2**63}, must be 0 or more and below 2^63"),
        (["--seed", str(2**64)], f"--seed is {2**64}, must be 0 or more and below 2^63"),
        (["--seed", "9" * 200], f"--seed is {'9' * 200}, must be 0 or more and below 2^63"),
        (["--temperature", "-0.5"], "--temperature is -0.5, must be 0 (the most likely token) or 0.001 or more"),
        (["--temperature", "nan"], "--temperature is nan, must be 0 (the most likely token) or 0.001 or more"),
        (["--temperature", "1e-40"], "--temperature is 1e-40, must be 0 (the most likely token) or 0.001 or more"),
        (["--top-p", "0"], "--top-p is 0.0, must be greater than 0 and at most 1"),
        (["--top-k", "-1"], "--top-k is -1, must be 0 or more"),
        (["--max-new-tokens", "0"], "--max-new-tokens is 0, must be 1 or more"),
        (["--min-p", "1"], "--min-p is 1.0, must be 0 or more and below 1"),
        (["--min-new-tokens", "-1"], "--min-new-tokens is -1, must be 0 or more"),
        (
            ["--min-new-tokens", "9", "--max-new-tokens", "8"],
            "--min-new-tokens is 9, must not exceed --max-new-tokens 8: no response could stop; lower it",
        ),
        (["--stop", ""], "--stop has an empty text, with which every response would end at once; remove it"),
        (["--engine.batch", "-1"], "engine.batch is -1, must be 0 or more"),
        (["--prompt.max_length", "0"], "prompt.max_length is 0, must be 1 or more"),
        (["--parallel.tensor", "0"], "parallel.tensor is 0, must be 1 or more"),
        (["--parallel.timeout_minutes", "0"], "parallel.timeout_minutes is 0.0, must be greater than 0"),
        (["--grading-workers", "0"], "--grading-workers is 0, must be 1 or more"),
        (["--grading-seconds", "0"], "--grading-seconds is 0.0, must be greater than 0 and finite"),
    ],
)
def test_a_number_out_of_bounds_is_refused_under_its_flag(evaluate: Evaluate, flags: list[str], message: str):
    assert evaluate(*flags) == message


@pytest.mark.parametrize(
    ("override", "flag"),
    [
        ("--rollout.temperature=0.6", "--temperature"),
        ("--rollout.top_p=0.8", "--top-p"),
        ("--rollout.top_k=20", "--top-k"),
        ("--rollout.max_new_tokens=12", "--max-new-tokens"),
        ("--rollout.min_new_tokens=12", "--min-new-tokens"),
        ("--rollout.min_p=0.1", "--min-p"),
        ("--rollout.stop=[END]", "--stop"),
        ("--engine.name=vllm", "--engine"),
        ("--prompt.student_thinking=true", "--thinking or --no-thinking"),
        ("--run.seed=4", "--seed"),
        ("--run.dir=elsewhere", "--out"),
        ("--model.path=elsewhere", "--model"),
        ("--data.train=elsewhere.jsonl", "--data"),
        ("--data.probe=elsewhere.jsonl", "--data"),
    ],
)
def test_an_override_of_what_a_flag_decides_is_refused(evaluate: Evaluate, override: str, flag: str):
    name = override.partition("=")[0]
    assert evaluate(override) == f"{name} would have no effect, because {flag} decides here; give that instead"
    assert evaluate(name, override.partition("=")[2]) == evaluate(override)


def test_all_such_overrides_are_listed_at_once(evaluate: Evaluate):
    said = evaluate("--rollout.top_k", "4", "--run.seed", "2")
    assert said.startswith("2 settings need a change: (1) --rollout.top_k would have no effect, because --top-k decides here")
    assert "(2) --run.seed would have no effect, because --seed decides here" in said


def test_what_a_recipe_says_of_sampling_does_not_count(evaluate: Evaluate, tmp_path: Path):
    recipe = "run: {seed: 4}\nrollout: {temperature: 0.6, max_new_tokens: 100000}\nprompt: {student_thinking: true, max_length: 80}\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    with pytest.raises(HeavyWorkError):
        evaluate("--config", str(tmp_path / "recipe.yaml"))


def test_a_cache_without_room_for_the_longest_prompt_and_response_is_refused(evaluate: Evaluate):
    said = evaluate("--engine.cache_gib", "1e-5")
    needed = re.fullmatch(
        r"engine\.cache_gib is 1e-05, which holds \d+ tokens of keys and values; the (\d+) tokens of the longest student prompt and "
        r"--max-new-tokens 48 need (\d+): set it to (\S+) or more, or 0",
        said,
    )
    assert needed is not None
    assert int(needed[2]) == int(needed[1]) + 48
    with pytest.raises(HeavyWorkError):
        evaluate("--engine.cache_gib", needed[3])


def test_all_numbers_out_of_bounds_are_listed_at_once(evaluate: Evaluate):
    said = evaluate("--samples", "0", "--top-p", "2")
    assert (
        said == "2 settings need a change: (1) --samples is 0, must be 1 or more; (2) --top-p is 2.0, must be greater than 0 and at most 1"
    )


def test_a_layout_that_does_not_fit_the_processes_is_refused(evaluate: Evaluate):
    said = evaluate("--parallel.tensor", "2", world_size=3)
    assert said.startswith("parallel.tensor 2 times parallel.pipeline 1 is 2, which does not divide the 3 processes;")


def test_a_tensor_size_that_does_not_divide_the_model_is_refused(evaluate: Evaluate):
    said = evaluate("--parallel.tensor", "4", world_size=4)
    assert said == "parallel.tensor is 4, must divide the model's query groups (2); give a divisor of 2"


def test_a_pipeline_size_that_does_not_divide_the_layers_is_refused(evaluate: Evaluate, inputs: Path):
    layers = json.loads((inputs / "hf" / "config.json").read_text())["num_hidden_layers"]
    said = evaluate("--parallel.pipeline", str(layers + 1), world_size=layers + 1)
    assert said == f"parallel.pipeline is {layers + 1}, must divide the model's {layers} layers"


def test_interleaving_without_a_pipeline_is_refused(evaluate: Evaluate):
    assert evaluate("--parallel.virtual_pipeline", "2").startswith("parallel.virtual_pipeline is 2 with parallel.pipeline 1: ")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["fp8_delayed"], "precision.rollout is fp8_delayed, whose scales come from a run's passes with gradients"),
        (["fp8_tensorwise"], "precision.rollout is fp8_tensorwise, but model.dtype is fp32"),
        (
            ["fp8_tensorwise", "--model.dtype", "bf16"],
            "precision.rollout is fp8_tensorwise, but Transformer Engine or a GPU is missing here",
        ),
    ],
)
def test_a_precision_of_generation_that_would_not_be_is_refused(evaluate: Evaluate, flags: list[str], message: str):
    assert evaluate("--precision.rollout", *flags).startswith(message)


def test_the_precision_of_training_passes_is_no_matter(evaluate: Evaluate):
    with pytest.raises(HeavyWorkError):
        evaluate("--precision.student", "fp8_delayed")


def test_a_model_field_that_megatron_does_not_know_is_refused(evaluate: Evaluate):
    assert "no_such_field" in evaluate("--megatron.no_such_field", "1")


def longest_room(said: str) -> int:
    """The largest --max-new-tokens that the refusal offers."""
    return int(said.rpartition("give ")[2].removesuffix(" or less"))


def test_the_default_length_of_a_response_is_refused_where_it_cannot_fit(evaluate: Evaluate):
    said = evaluate("--max-new-tokens", "38912")
    assert said.startswith("--max-new-tokens 38912 plus the ")
    assert f"must not exceed the model's {POSITIONS} positions; give " in said


def test_exactly_the_room_that_the_longest_prompt_leaves_is_enough(evaluate: Evaluate):
    room = longest_room(evaluate("--max-new-tokens", str(POSITIONS)))
    assert longest_room(evaluate("--max-new-tokens", str(room + 1))) == room
    with pytest.raises(HeavyWorkError):
        evaluate("--max-new-tokens", str(room))


def test_only_real_prompts_count_not_the_longest_allowed(evaluate: Evaluate):
    with pytest.raises(HeavyWorkError):
        evaluate("--prompt.max_length", str(10 * POSITIONS))


def test_a_prompt_too_long_is_refused(evaluate: Evaluate):
    said = evaluate("--prompt.max_length", "3")
    assert "its student prompt has " in said
    assert "but prompt.max_length is 3: raise it, or leave the problem out" in said


def test_out_that_is_a_file_is_refused(evaluate: Evaluate, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    said = evaluate("--out", str(tmp_path / "file"))
    assert said == f"--out is {tmp_path / 'file'}, which cannot be written to (File exists); give a folder to write to"
    assert (tmp_path / "file").read_text() == "mine"


def test_out_below_a_file_is_refused(evaluate: Evaluate, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    said = evaluate("--out", str(tmp_path / "file" / "out"))
    assert said == f"--out is {tmp_path / 'file' / 'out'}, which cannot be written to (Not a directory); give a folder to write to"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_out_without_permission_is_refused(evaluate: Evaluate, tmp_path: Path):
    (tmp_path / "sealed").mkdir(mode=0o500)
    assert "cannot be written to (Permission denied)" in evaluate("--out", str(tmp_path / "sealed"))


def test_an_out_with_responses_of_other_settings_is_refused_by_name(evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made: list[dict[str, Any]] = []
    with monkeypatch.context() as patch:
        patch.setattr("megatron_atesd.evaluate.prepare.check_same", lambda _, decisive: made.append(decisive))
        with pytest.raises(HeavyWorkError):
            evaluate("--seed", "3")
    (tmp_path / "out" / "settings.json").write_text(json.dumps(made[0]))
    with pytest.raises(HeavyWorkError):
        evaluate("--seed", "3")
    assert evaluate("--seed", "4", "--stop", "END") == (
        f'--out {tmp_path / "out"} holds an evaluation with other settings: --seed is 4, there 3, --stop is ["END"], there []; '
        "give another --out, or remove this folder to begin anew, or go on with those"
    )


def test_a_refusal_leaves_no_folder_behind(evaluate: Evaluate, tmp_path: Path):
    evaluate("--max-new-tokens", "38912")
    assert not (tmp_path / "out").exists()
