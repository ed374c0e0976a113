"""Problem files, settings, models and places to write that a run cannot use: refused in one line before any process group is made."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from examples.quickstart.warm_start import describe_model
from megatron_atesd.data.problems import save_problems
from megatron_atesd.data.sources.chain import chain_splits
from tests.support.bad_input import ROOT, refusal

Change = Callable[[Path], object]
GOOD = {"id": "good", "problem": "1+2", "solution": "1+2=3\n\\boxed{3}"}


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def lines(*content: bytes | str | dict[str, Any]) -> Callable[[Path], object]:
    encoded = [c if isinstance(c, bytes) else (c if isinstance(c, str) else json.dumps(c)).encode() for c in content]
    return lambda path: path.write_bytes(b"\n".join(encoded))


# Made in the place of a problem file.
PROBLEMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "does not exist"),
    "a folder": (Path.mkdir, "(Is a directory)"),
    "a loop of links": (loop, "(Too many levels of symbolic links)"),
    "empty": (Path.touch, "no usable problem"),
    "NUL bytes": (lines(b"\0" * 4096), "bad.jsonl:1: not valid JSON"),
    "UTF-16": (lambda path: path.write_text(json.dumps(GOOD), encoding="utf-16"), "bad.jsonl:1: not valid UTF-8 at byte 0"),
    "not UTF-8": (lines(GOOD, b'{"problem": "\xff"}'), "bad.jsonl:2: not valid UTF-8 at byte 13"),
    "one half of a surrogate pair": (
        lines(GOOD, '{"problem": "\\ud800", "solution": "s", "answer": "1"}'),
        "bad.jsonl:2: a \\ud800…\\udfff without its other half is no character",
    ),
    "a huge line": (lines(GOOD, GOOD | {"id": "x", "problem": "1+" * 10_000_000}), "bad.jsonl:2: 2000"),
    "nested without end": (lines(GOOD, '{"problem": ' + "[" * 100_000), "bad.jsonl:2: not usable JSON (nested too deeply)"),
    "a number of 5000 digits": (
        lines(GOOD, '{"problem": "1+3", "solution": "s", "answer": ' + "9" * 5000 + "}"),
        "bad.jsonl:2: not usable JSON (Exceeds the limit",
    ),
    "a repeated id": (lines(GOOD, GOOD | {"problem": "2+2"}), "bad.jsonl:2: duplicate id 'good', first used in line 1"),
    "a number for a problem": (lines(GOOD | {"problem": 3}), "bad.jsonl:1: `problem` must be a string, found int"),
    "a list for a solution": (lines(GOOD | {"solution": ["1+2=3"]}), "bad.jsonl:1: `solution` must be a string, found list"),
    "no solution": (lines({"problem": "1+2"}), "bad.jsonl:1: `solution` is missing"),
    "no boxed answer": (lines({"problem": "1+2", "solution": "3"}), "bad.jsonl:1: no `answer`, and the solution has no"),
    "an array of problems": (lines(json.dumps([GOOD])), "bad.jsonl:1: expected a JSON object, found list"),
    "safetensors": (lines(b"\x40\0\0\0\0\0\0\0{"), "bad.jsonl:1: not valid JSON"),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    describe_model(folder / "hf")
    for name, problems in chain_splits({"train": 8, "probe": 2}, seed=1).items():
        save_problems(problems, folder / f"{name}.jsonl")
    return folder


@pytest.fixture(autouse=True)
def _no_heavy_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def heavy_work(*_: Any, **__: Any) -> None:
        raise AssertionError("the refusal comes too late: process groups were about to be made")

    for module in ("train.loop", "evaluate.evaluation"):
        monkeypatch.setattr(f"megatron_atesd.{module}.session_of", heavy_work)


def training(inputs: Path, run_dir: Path, *changes: str, model: Path | None = None) -> list[str]:
    given = {"model.path": model or inputs / "hf", "data.train": inputs / "train.jsonl", "data.probe": inputs / "probe.jsonl"}
    given |= {"run.dir": run_dir, "parallel.tensor": 1, "config": ROOT / "examples" / "quickstart" / "atesd.yaml"}
    return [*(f"--{name}={value}" for name, value in given.items()), *changes]


def evaluation(inputs: Path, out: Path, *changes: str, model: Path | None = None) -> list[str]:
    given = {"model": model or inputs / "hf", "data": inputs / "probe.jsonl", "out": out, "max-new-tokens": 48, "parallel.tensor": 1}
    given |= {"config": ROOT / "examples" / "quickstart" / "atesd.yaml"}
    return [*(f"--{name}={value}" for name, value in given.items()), *changes]


@pytest.mark.parametrize("command", ["evaluate", "prepare_data"])
@pytest.mark.parametrize("case", PROBLEMS)
def test_bad_problem_file(inputs: Path, tmp_path: Path, command: str, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    make, says = PROBLEMS[case]
    path, out = tmp_path / "bad.jsonl", tmp_path / "out"
    make(path)
    arguments = {
        "evaluate": evaluation(inputs, out, f"--data={path}"),
        "prepare_data": ["jsonl", path, "--out", out / "clean.jsonl"],
    }[command]
    said = refusal(command, arguments, tmp_path, capsys)
    assert str(path) in said
    assert says in said


# Eight lines that stand for 8^8 values.
BOMB = "a: &a [x]\n" + "".join(f"{name}: &{name} [{', '.join([f'*{before}'] * 8)}]\n" for before, name in pairwise("abcdefghi"))
# A second file of settings, after the quickstart's.
SETTINGS: dict[str, tuple[str | bytes, str]] = {
    "not YAML": ("run: [", "run.yaml:1: not valid YAML"),
    "not UTF-8": (b"run:\n  dir: \xff", "run.yaml: is not UTF-8 text"),
    "NUL bytes": (b"\0" * 64, "run.yaml: not valid YAML: unacceptable character"),
    "nested without end": ("run: " + "[" * 100_000, "run.yaml: a value cannot be read (maximum recursion depth"),
    "a bomb of aliases": (BOMB + "run: {dir: *i}", "run.yaml:2: not valid YAML: alias *a is not supported: write the value out"),
    "a bomb in a passed-through section": (BOMB + "optimizer: {lr: *i}", "run.yaml:2: not valid YAML: alias *a is not supported"),
    "an alias of itself": ("run: &a {dir: *a}", "run.yaml:1: not valid YAML: alias *a is not supported"),
    "a date that is none": ("run: {dir: 2024-13-45}", "run.yaml: a value cannot be read (month must be in 1..12)"),
    "a number of 5000 digits": ("run: {seed: " + "9" * 5000 + "}", "run.yaml: a value cannot be read (Exceeds the limit"),
    "a key that is a list": ("? [a, b]\n: 1", "run.yaml:1: a name must be plain text"),
    "a merge of nothing": ("run:\n  <<: 3", "run.yaml:2: unknown setting run.<<"),
    "two documents": ("run: {seed: 1}\n---\nrun: {seed: 2}", "run.yaml:2: not valid YAML: but found another document"),
    "a NUL character in a path": ('data: {train: "a\\0b"}', "run.yaml:1: data.train has a NUL character"),
    "a tag that calls python": (
        "run: {dir: !!python/object/apply:os.getcwd []}",
        "run.yaml:1: not valid YAML: could not determine a constructor",
    ),
    "a repeated section": ("run: {seed: 1}\nrun: {seed: 2}", "run.yaml:2: run is given twice"),
    "an unknown setting": ("exposure: {holdd: 3}", "run.yaml:1: unknown setting exposure.holdd; did you mean exposure.hold?"),
    "an infinite learning rate": ("optimizer: {lr: .inf}", "optimizer.lr is inf"),
    "a seed below 0": ("run: {seed: -3}", "run.seed is -3, must be 0 or more and below 2^63"),
    "a seed of 64 bits": (f"run: {{seed: {2**64 - 1}}}", f"run.seed is {2**64 - 1}, must be 0 or more and below 2^63"),
    "a seed of 400 digits": ("run: {seed: " + "7" * 400 + "}", "777, must be 0 or more and below 2^63"),
    "a seed that is no number": ("run: {seed: .nan}", "run.yaml:1: run.seed is nan, must be a whole number"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_bad_settings(inputs: Path, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    content, says = SETTINGS[case]
    path, out = tmp_path / "run.yaml", tmp_path / "out"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    said = refusal("train", training(inputs, out, f"--config={path}"), tmp_path, capsys)
    assert says in said
    assert len(said) < 1000


def config(**values: Any) -> Change:
    return lambda folder: (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | values))


# Changes to the model folder.
MODELS: dict[str, tuple[Change, str]] = {
    "no config.json": (lambda f: (f / "config.json").unlink(), "/hf: neither a"),
    "config.json cut short": (lambda f: (f / "config.json").write_text("{"), "hf/config.json: cannot be read as JSON"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "/hf: no tokenizer here"),
    "a tokenizer cut short": (
        lambda f: (f / "tokenizer.json").write_text("{"),
        "/hf: the tokenizer (tokenizer.json, tokenizer_config.json) cannot be loaded",
    ),
    "a tokenizer larger than the model": (config(vocab_size=51), "has id 51, but config.json gives vocab_size 51"),
    "an end token out of range": (config(eos_token_id=52), "hf/config.json: eos_token_id is 52"),
    "no chat template": (lambda f: (f / "chat_template.jinja").unlink(), "the tokenizer has no chat template"),
    "a chat template that cannot be parsed": (
        lambda f: (f / "chat_template.jinja").write_text("{% if %}"),
        "chat template cannot be rendered (Expected an expression",
    ),
    "a chat template that refuses": (
        lambda f: (f / "chat_template.jinja").write_text("{{ raise_exception('no') }}"),
        "chat template cannot be rendered (no)",
    ),
    "a chat template that calls python": (
        lambda f: (f / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
        "chat template cannot be rendered (access to attribute '__class__'",
    ),
    "a generation config cut short": (
        lambda f: (f / "generation_config.json").write_text("{"),
        "hf/generation_config.json: cannot be read as JSON",
    ),
    "heads that do not divide": (config(num_attention_heads=5), "hf/config.json: num_attention_heads 5 must be a multiple"),
    "a file": (lambda f: (shutil.rmtree(f), f.touch()), "/hf"),
    "a loop of links": (lambda f: (shutil.rmtree(f), loop(f)), "/hf"),
}


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize("case", MODELS)
def test_bad_model(inputs: Path, tmp_path: Path, command: str, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    change, says = MODELS[case]
    model, out = shutil.copytree(inputs / "hf", tmp_path / "hf"), tmp_path / "out"
    change(model)
    make = {"train": training, "evaluate": evaluation}[command]
    said = refusal(command, make(inputs, out, model=model), tmp_path, capsys)
    assert says in said


@pytest.mark.parametrize("command", ["train", "evaluate", "prepare_data"])
@pytest.mark.parametrize("out", ["file", "file/below", "/proc/out", "loop"])
def test_bad_place_to_write(inputs: Path, tmp_path: Path, command: str, out: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    loop(tmp_path / "loop")
    place = tmp_path / out
    arguments = {
        "train": training(inputs, place),
        "evaluate": evaluation(inputs, place),
        "prepare_data": ["chain", "--out", place, "--train", 3, "--probe", 1, "--test", 0],
    }[command]
    said = refusal(command, arguments, tmp_path, capsys)
    assert str(place) in said


def test_a_full_disk(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal("prepare_data", ["jsonl", inputs / "train.jsonl", "--out", "/dev/full"], tmp_path, capsys)
    assert said == "cannot write /dev/full (No space left on device): choose another --out"


def test_a_problem_file_survives_a_failed_rewrite(inputs: Path, tmp_path: Path) -> None:
    """A limit on the size of files, which fails as a full disk does, after part of the new file is written."""
    old = tmp_path / "kept.jsonl"
    shutil.copy(inputs / "probe.jsonl", old)
    command = f"ulimit -f 1; exec {sys.executable} {ROOT / 'tools' / 'prepare_data.py'} jsonl {inputs / 'train.jsonl'} --out {old}"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert (ended.returncode, ended.stderr) == (2, f"error: cannot write {old} (File too large): choose another --out\n")
    assert old.read_bytes() == (inputs / "probe.jsonl").read_bytes()
    assert list(tmp_path.iterdir()) == [old]
