"""A folder of responses goes on only with the settings that made them."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from megatron_atesd.checkpoint.fingerprint import fingerprint
from megatron_atesd.checkpoint.manifest import MANIFEST
from megatron_atesd.config import ParallelConfig, PromptConfig, RolloutConfig, TrainConfig
from megatron_atesd.errors import ConfigError
from megatron_atesd.evaluate.evaluation import with_flags
from megatron_atesd.evaluate.flags import FLAGS
from megatron_atesd.evaluate.same_settings import SETTINGS, check_same, decisive_settings
from megatron_atesd.records import Problem

PROBLEMS = [Problem(f"p{i}", f"question {i}", "so", "1") for i in range(3)]
CONFIG = TrainConfig()
INSTRUCTION = PromptConfig().instruction
Change = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Looks like a Hugging Face folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def out(tmp_path: Path, model: Path) -> Path:
    """Has responses of CONFIG to PROBLEMS, 12 samples, seed 1."""
    folder = tmp_path / "out"
    (folder / "unfinished").mkdir(parents=True)
    (folder / SETTINGS).write_text(json.dumps(decisive_settings(CONFIG, model, PROBLEMS, 12, 1)))
    return folder


def refusal(out: Path, model: Path, config: TrainConfig = CONFIG, problems: Any = PROBLEMS, samples: int = 12, seed: int = 1) -> str:
    """What check_same says differs; "" when it lets these settings go on."""
    try:
        check_same(out, decisive_settings(config, model, problems, samples, seed))
    except ConfigError as error:
        said, remedy = str(error).split("; ")
        assert remedy == "give another --out, or remove this folder to begin anew, or go on with those"
        return said.removeprefix(f"--out {out} holds an evaluation with other settings: ")
    return ""


def test_the_same_settings_go_on(out: Path, model: Path) -> None:
    assert refusal(out, model) == ""


def test_what_decides_no_response_may_change(out: Path, model: Path) -> None:
    layout, engine = ParallelConfig(tensor=2, micro_batch_tokens=5), replace(CONFIG.engine, batch=3, cache_gib=1.0)
    assert refusal(out, model, replace(CONFIG, parallel=layout, engine=engine)) == ""
    assert refusal(out, model, problems=[replace(p, answer="2") for p in PROBLEMS]) == ""


@pytest.mark.parametrize("name", [field.name for field in fields(RolloutConfig)])
def test_other_sampling_is_refused_by_its_flag(out: Path, model: Path, name: str) -> None:
    before = getattr(CONFIG.rollout, name)
    value = ["END"] if name == "stop" else before + 1
    said = refusal(out, model, replace(CONFIG, rollout=replace(CONFIG.rollout, **{name: value})))
    assert said == f"{FLAGS[f'rollout.{name}']} is {json.dumps(value)}, there {json.dumps(before)}"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"samples": 4}, "--samples is 4, there 12"),
        ({"seed": 2}, "--seed is 2, there 1"),
        ({"problems": PROBLEMS[:2]}, "the problems in --data differ"),
        ({"problems": PROBLEMS[::-1]}, "the problems in --data differ"),
        ({"problems": [*PROBLEMS[:2], replace(PROBLEMS[2], problem="else")]}, "the problems in --data differ"),
        ({"config": replace(CONFIG, prompt=PromptConfig(student_thinking=True))}, "--thinking is true, there false"),
        ({"config": replace(CONFIG, prompt=PromptConfig(instruction="a"))}, f'prompt.instruction is "a", there {json.dumps(INSTRUCTION)}'),
        ({"config": replace(CONFIG, model=replace(CONFIG.model, dtype="bf16"))}, 'model.dtype is "bf16", there "fp32"'),
        ({"config": replace(CONFIG, engine=replace(CONFIG.engine, name="vllm"))}, '--engine is "vllm", there "training"'),
        ({"config": replace(CONFIG, megatron={"rotary_base": 5})}, 'megatron is {"rotary_base": 5}, there {}'),
        ({"samples": 4, "seed": 2}, "--samples is 4, there 12, --seed is 2, there 1"),
    ],
)
def test_other_settings_are_refused_by_name(out: Path, model: Path, changed: dict[str, Any], says: str) -> None:
    assert refusal(out, model, **changed) == says


def test_other_weights_in_the_same_place_are_refused(out: Path, model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"WEIGHTS")
    os.utime(model / "model.safetensors", ns=(1, 1))
    assert refusal(out, model) == "what is in --model differs"


def test_another_model_is_refused_by_its_folder(out: Path, model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "other")
    assert refusal(out, tmp_path / "other") == f'--model is "{tmp_path / "other"}", there "{model}"'


def test_results_that_do_not_say_how_they_were_made_stay(out: Path, model: Path) -> None:
    (out / SETTINGS).unlink()
    wanted = decisive_settings(CONFIG, model, PROBLEMS, 12, 1)
    for name in ("unfinished", "evaluation.json", "responses.jsonl"):
        shutil.rmtree(out)
        out.mkdir()
        (out / name).touch()
        with pytest.raises(ConfigError, match=f"has {name} but no settings.json that says how it was made; give another --out"):
            check_same(out, wanted)


@pytest.mark.parametrize("text", ["", "{", "[]", "\udcff"])
def test_settings_that_cannot_be_read_are_refused(out: Path, model: Path, text: str) -> None:
    (out / SETTINGS).write_text(text, errors="surrogateescape")
    with pytest.raises(ConfigError, match=r"settings.json cannot be read .*; give another --out"):
        check_same(out, decisive_settings(CONFIG, model, PROBLEMS, 12, 1))


def test_a_folder_of_something_else_may_be_used(tmp_path: Path, model: Path) -> None:
    (tmp_path / "notes.txt").touch()
    assert refusal(tmp_path, model) == ""


def test_a_megatron_folder_is_known_by_its_checksums(tmp_path: Path) -> None:
    folder = tmp_path / "megatron"
    (folder / "weights").mkdir(parents=True)
    (folder / "weights" / "part").write_bytes(b"1")
    without = fingerprint(folder)
    (folder / MANIFEST).write_text("sums")
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    assert fingerprint(tmp_path / "copy") == fingerprint(folder) != without
    (folder / MANIFEST).write_text("others")
    assert fingerprint(tmp_path / "copy") != fingerprint(folder)


def test_no_sampling_of_a_training_run_reaches_an_evaluation() -> None:
    assert {f"rollout.{field.name}" for field in fields(RolloutConfig)} <= FLAGS.keys()
    run = replace(CONFIG, rollout=RolloutConfig(7, 6, 0.5, 4, 0.3, 0.2, ["x"]), engine=replace(CONFIG.engine, name="vllm", batch=9))
    ours = with_flags(run, RolloutConfig(), "training", True)
    assert (ours.rollout, ours.engine, ours.prompt.student_thinking) == (RolloutConfig(), replace(run.engine, name="training"), True)
