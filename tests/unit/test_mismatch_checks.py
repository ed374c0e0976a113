"""What tools/mismatch.py refuses before process groups and a model exist: one line that names the flag or setting."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.refusals import HeavyWorkError, refusal, save_description

ALPHAS = "must be two or more numbers from 0 to 1, each above the one before"
SESSION = "megatron_atesd.parallel.session.session_of"
Measure = Callable[..., str]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_description(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def measure(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Measure:
    """What tools/mismatch.py refuses with, see `refusal`."""

    def run(*flags: object, world_size: int = 1) -> str:
        monkeypatch.setenv("WORLD_SIZE", str(world_size))
        given = {"--model": inputs / "hf", "--data": inputs / "test.jsonl", "--out": tmp_path / "out"}
        said = refusal("mismatch.py", SESSION, given, flags, monkeypatch, capsys)
        assert not (tmp_path / "out" / "mismatch.json").exists()
        return said

    return run


@pytest.mark.parametrize("alphas", ["0,0.5,1.5", "-0.1,1", "0.5,0.25,1", "0,0.5,0.5,1", "0.5", "", "0,half", "0,nan", "0,,1"])
def test_exposures_that_are_no_rising_shares_are_refused(measure: Measure, alphas: str):
    assert measure(f"--alphas={alphas}").startswith(f"--alphas is {alphas!r}, {ALPHAS}")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--problems", "-1"], "--problems is -1, must be 0 (all) or more"),
        (["--problems", "1"], "--problems is 1: standard errors are over problems; give 2 or more, or 0 for all"),
        (["--samples", "0"], "--samples is 0, must be 1 or more"),
        (["--bench", "-1"], "--bench is -1, must be 0 or more"),
        (["--seed", "-1"], "--seed is -1, must be 0 or more and below 2^63"),
        (["--model", "nowhere"], "--model is nowhere, which is no folder; give a Megatron or Hugging Face model folder"),
        (["--exposure.reference", "none"], "exposure.reference is none, so the teacher sees the same at every α of --alphas; "),
        (["--exposure.grounding", "own"], "exposure.grounding is own, the correct responses of a training's start model; "),
        (["--precision.teacher", "fp8_delayed"], "precision.teacher is fp8_delayed, whose scales come from a run's passes with gradients"),
        (["--rollout.temperature", "0"], "rollout.temperature is 0 and distill.temperature is null, so both logits would be divided by 0"),
        (["--parallel.tensor", "2"], "parallel.tensor 2 times parallel.pipeline 1 is 2, which does not divide the 1 processes;"),
        (["--rollout.max_new_tokens", "200"], "prompt.max_length 80 plus rollout.max_new_tokens 200 is 280, must not exceed the model's"),
        (["--prompt.max_length", "12"], "problem 'chain-test-1': its teacher prompt has "),
        (["--engine.cache_gib", "1e-6"], "engine.cache_gib is 1e-06, which holds "),
        (["--exposure.mode", "fixed"], "--exposure.mode would have no effect, because --alphas decides here; give that instead"),
        (["--run.seed", "3"], "--run.seed would have no effect, because --seed decides here; give that instead"),
        (["--no_such", "3"], "unknown setting --no_such"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused_under_its_name(measure: Measure, flags: list[str], message: str):
    assert measure(*flags).startswith(message)


def test_nothing_is_refused_without_a_reason(measure: Measure):
    with pytest.raises(HeavyWorkError):
        measure()


def test_what_a_recipe_says_of_the_exposure_in_force_does_not_count(measure: Measure, tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text("run: {seed: 4}\nexposure: {mode: none}\noptimizer: {lr: 1.0}\ndata: {batch: 33}\n")
    with pytest.raises(HeavyWorkError):
        measure("--config", tmp_path / "recipe.yaml")


def test_a_teacher_that_stays_for_long_in_a_long_training_can_be_measured(measure: Measure):
    with pytest.raises(HeavyWorkError):
        measure("--distill.teacher", "refreshed", "--distill.refresh_every", "995", "--run.updates", "1000")


def test_a_problem_file_that_is_not_there_is_refused(measure: Measure):
    assert measure("--data", "nowhere.jsonl").startswith("problem file nowhere.jsonl does not exist")


def lines(path: Path, *solutions: str) -> Path:
    path.write_text("".join(json.dumps({"id": f"p{i}", "problem": f"{i}+1", "solution": s}) + "\n" for i, s in enumerate(solutions)))
    return path


def test_problems_without_a_worked_solution_are_refused_by_name(measure: Measure, tmp_path: Path):
    data = lines(tmp_path / "bare.jsonl", "0+1=1\n\\boxed{1}", "\\boxed{2}", "\\boxed{3}")
    assert measure("--data", data) == (
        f"{data}: 2 of 3 problems have no solution beside the boxed answer (the first: 'p1'), so that no α reveals anything; give problems "
        "with worked solutions"
    )


def test_a_problem_without_any_solution_is_refused(measure: Measure, tmp_path: Path):
    (tmp_path / "none.jsonl").write_text('{"problem": "1+2", "answer": "3"}\n')
    assert measure("--data", tmp_path / "none.jsonl").startswith(f"{tmp_path / 'none.jsonl'}:1: ")


def test_one_problem_has_no_standard_error(measure: Measure, tmp_path: Path):
    data = lines(tmp_path / "one.jsonl", "0+1=1\n\\boxed{1}")
    assert measure("--data", data) == f"{data} has one problem: standard errors are over problems; give a file with 2 or more"


def test_a_grounding_text_that_exceeds_the_models_positions_is_refused(measure: Measure, tmp_path: Path):
    data = lines(tmp_path / "long.jsonl", "0+1=1\n\\boxed{1}", "\n".join(["1+1=2"] * 24) + "\n\\boxed{2}")
    flags = ("--data", data, "--prompt.max_length", "200", "--rollout.max_new_tokens", "16")
    assert measure(*flags).startswith("problem 'p1': its longest teacher prompt and the text of exposure.grounding are ")
    with pytest.raises(HeavyWorkError):
        measure(*flags, "--exposure.grounding", "off")


@pytest.mark.parametrize("name", ["mismatch.json", "mismatch.png"])
def test_an_out_with_a_measurement_is_refused(measure: Measure, tmp_path: Path, name: str):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / name).write_text("mine")
    assert measure("--out", tmp_path / "taken") == f"--out {tmp_path / 'taken'} has a {name} already; give another --out, or remove it"
    assert (tmp_path / "taken" / name).read_text() == "mine"


def test_out_that_is_a_file_is_refused(measure: Measure, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    assert measure("--out", tmp_path / "file") == f"--out is {tmp_path / 'file'}, which is a file; give a folder to write to"
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_out_without_permission_is_refused(measure: Measure, tmp_path: Path):
    (tmp_path / "sealed").mkdir(mode=0o500)
    assert "cannot be written to (Permission denied)" in measure("--out", tmp_path / "sealed" / "out")


def test_out_inside_the_models_folder_is_refused(measure: Measure, inputs: Path):
    assert measure("--out", inputs / "hf" / "out").startswith(f"--out is {inputs / 'hf' / 'out'}, inside the model's folder ")


def test_a_refusal_leaves_no_folder_behind(measure: Measure, tmp_path: Path):
    measure("--samples", "0")
    measure("--prompt.max_length", "12")
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_it_says_what_to_install(measure: Measure, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert measure() == "drawing needs matplotlib: pip install -e '.[plots]' in this project's checkout"
