"""What users get wrong: one `error: …` line that says which value, which rule and what to do, exit code 2, and nothing written."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from tests.support.patience import PATIENCE
from tests.support.small_run import ENVIRONMENT, ROOT, arguments, save_inputs

Train = Callable[..., "Refused"]
GOOD = {"id": "good", "problem": "1+2", "solution": "1+2=3\n\\boxed{3}"}


@dataclass(frozen=True)
class Refused:
    """How a command ended, and what it must not have written."""

    code: int
    stderr: str
    written: list[Path]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def train(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Train:
    """tools/train.py in this process, on TP=1; fails when it gets as far as making process groups or a model."""

    def run(*overrides: str, world_size: int = 1) -> Refused:
        run_dir = tmp_path / "run"
        monkeypatch.setenv("WORLD_SIZE", str(world_size))
        monkeypatch.setattr("megatron_atesd.train.loop.session_of", heavy_work)
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments(inputs, run_dir, "--parallel.tensor=1", *overrides)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "tools" / "train.py"), run_name="__main__")
        assert isinstance(end.value.code, int)
        return Refused(end.value.code, capsys.readouterr().err, list(run_dir.rglob("*")))

    return run


def heavy_work(*_: Any, **__: Any) -> None:
    raise AssertionError("the refusal comes too late: process groups were about to be made")


def start(out: Path, script: str, *options: str | Path) -> Refused:
    """A command started as a plain process, as a user does, that would write to the folder `out`."""
    command = [sys.executable, str(ROOT / script), *map(str, options)]
    result = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
    return Refused(result.returncode, result.stderr, [path for path in out.parent.rglob("*") if out.name in path.name])


def message(refused: Refused) -> str:
    """The one line, without `error: `."""
    assert refused.code == 2, refused.stderr
    assert refused.written == []
    # Of its own accord a CUDA build of torch without a GPU speaks of the compiler that it has found.
    lines = [line for line in refused.stderr.splitlines() if "torch/utils/cpp_extension.py" not in line]
    assert len(lines) == 1, refused.stderr
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


def problem_file(path: Path, *lines: dict[str, Any] | str) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_a_missing_problem_file(train: Train, tmp_path: Path) -> None:
    said = message(train(f"--data.train={tmp_path / 'absent.jsonl'}"))
    assert said == f"data.train is {tmp_path / 'absent.jsonl'}, which is no file; give a problem file (JSONL with problem and solution)"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"problem": "1+2", "solution": ', r"not valid JSON \(Expecting value, column 32\)"),
        (GOOD | {"id": "empty", "solution": " \n"}, "`solution` is empty"),
        (GOOD | {"id": "open", "solution": "1+2=3"}, r"no `answer`, and the solution has no \\boxed{…}: add one of the two"),
        (GOOD | {"problem": "2+1"}, "duplicate id 'good', first used in line 1: ids must be unique"),
    ],
    ids=["bad JSON", "empty solution", "no answer and no box", "duplicate ids"],
)
def test_a_bad_line_is_named_with_reason_and_remedy(train: Train, tmp_path: Path, line: dict[str, Any] | str, reason: str) -> None:
    path = problem_file(tmp_path / "train.jsonl", GOOD, line)
    said = message(train(f"--data.train={path}"))
    assert re.fullmatch(
        re.escape(f"{path}:2: ") + reason + r" \(mend the line; .*`data.on_error skip` of a training, leaves bad ones out\)", said
    )


def test_a_problem_in_both_train_and_probe(train: Train, tmp_path: Path) -> None:
    learned = problem_file(tmp_path / "train.jsonl", GOOD)
    probe = problem_file(tmp_path / "probe.jsonl", GOOD | {"id": "same", "problem": " 1+2\n"})
    said = message(train(f"--data.train={learned}", f"--data.probe={probe}"))
    assert said == (
        f"problem 'same' of data.probe {probe} is also in data.train {learned} (as 'good'): splits must not share a problem; "
        "remove it from one of them"
    )


def test_one_file_for_both_train_and_probe(train: Train, tmp_path: Path) -> None:
    both = problem_file(tmp_path / "both.jsonl", GOOD)
    assert "splits must not share a problem" in message(train(f"--data.train={both}", f"--data.probe={both}"))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("--optimizer.lrr=1", "unknown setting optimizer.lrr"),
        ("--ddp.overlap_grad=1", "unknown setting ddp.overlap_grad"),
        ("--megatron.num_layers=3", "megatron.num_layers is decided by the model folder"),
        ("--optimizer.optimizer=lion", "optimizer.optimizer is lion, must be adam or sgd"),
        ("--ddp.use_distributed_optimizer=true", "ddp.use_distributed_optimizer is decided by optimizer.use_distributed_optimizer"),
        ("--ddp.overlap_param_gather=true", "ddp.overlap_param_gather is true"),
        ("--schedule.warmup_updates=6", "schedule.warmup_updates is 6, must be below run.updates 6"),
    ],
)
def test_passed_through_settings_are_refused_before_process_groups(train: Train, override: str, said: str) -> None:
    assert said in message(train(override))


def test_an_unknown_setting_with_the_nearest_name(train: Train) -> None:
    assert re.fullmatch(r"unknown setting --exposure\.holt.*did you mean .*exposure\.hold\b.*", message(train("--exposure.holt=3")))


def test_an_unknown_setting_of_a_file_with_the_nearest_name(train: Train, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("exposure: {lookahed: 3}\n")
    said = message(train(f"--config={tmp_path / 'run.yaml'}"))
    assert str(tmp_path / "run.yaml") in said
    assert re.search(r"exposure\.lookahed\b.*did you mean .*exposure\.lookahead\b", said)


def test_a_value_of_the_wrong_type(train: Train) -> None:
    assert message(train("--exposure.hold=two")) == "exposure.hold is 'two', must be a whole number"


def test_a_tensor_parallel_size_that_does_not_divide_the_model(train: Train) -> None:
    said = message(train("--parallel.tensor=4", world_size=4))
    assert said == "parallel.tensor is 4, must divide the model's query groups (2); give a divisor of 2"


def test_a_wrong_number_of_processes(train: Train) -> None:
    said = message(train("--parallel.tensor=2", world_size=3))
    assert said == (
        "parallel.tensor 2 times parallel.pipeline 1 is 2, which does not divide the 3 processes; "
        "start a multiple of 2 processes or lower one of the two"
    )


def test_a_disk_without_room_for_a_checkpoint(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr("megatron_atesd.doctor.machine.shutil.disk_usage", lambda _: full)
    said = message(train())
    assert re.fullmatch(r"only 0\.0 GiB are free for run\.dir .*: free some space, lower checkpoint\.keep or choose another run\.dir", said)


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11, bos_token_id=1, eos_token_id=2)).save_pretrained(folder)
    return folder


def test_a_model_of_another_architecture(train: Train, other_model: Path) -> None:
    said = message(train(f"--model.path={other_model}"))
    assert said == f"{other_model / 'config.json'}: model_type 'gpt2' is not supported; use qwen3 or llama"


@pytest.fixture(scope="module")
def truncated(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(inputs / "hf", tmp_path_factory.mktemp("truncated") / "hf")
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    return folder


def test_command_line_train_with_an_unknown_setting(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    said = message(start(out, "tools/train.py", *arguments(inputs, out, "--rollout.temprature=1")))
    assert re.fullmatch(r"unknown setting --rollout\.temprature.*did you mean .*rollout\.temperature\b.*", said)


def test_command_line_train_of_two_ranks_without_torchrun(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    said = message(start(out, "tools/train.py", *arguments(inputs, out, "--parallel.tensor=2")))
    assert "which does not divide the 1 processes; start a multiple of 2 processes" in said


def test_command_line_train_from_truncated_weights(inputs: Path, truncated: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    said = message(start(out, "tools/train.py", *arguments(inputs, out, "--parallel.tensor=1", f"--model.path={truncated}")))
    assert said.startswith(f"{truncated / 'model.safetensors'}: damaged or incomplete")
    assert said.endswith("; download it again")


def test_command_line_conversion_of_truncated_weights(truncated: Path, tmp_path: Path) -> None:
    out = tmp_path / "megatron"
    said = message(start(out, "checkpoints_convert/hf_to_megatron.py", "--hf", truncated, "--out", out))
    assert said.startswith(f"{truncated / 'model.safetensors'}: damaged or incomplete")
    assert said.endswith("; download it again")


def test_command_line_preparation_of_a_bad_file(tmp_path: Path) -> None:
    source, out = problem_file(tmp_path / "source.jsonl", GOOD, "{"), tmp_path / "prepared.jsonl"
    said = message(start(out, "tools/prepare_data.py", "jsonl", source, "--out", out))
    assert said.startswith(f"{source}:2: not valid JSON")
