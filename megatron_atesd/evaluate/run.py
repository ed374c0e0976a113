"""Evaluate one model on one problem file: sample, grade, summarise, write."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from megatron_atesd.config import TrainConfig
from megatron_atesd.data.problems import load_problems
from megatron_atesd.data.prompts import PromptRenderer
from megatron_atesd.data.tokenizer import load_tokenizer
from megatron_atesd.errors import ConfigError
from megatron_atesd.evaluate.average import difficulty_of, summarize
from megatron_atesd.evaluate.grading import Grader
from megatron_atesd.evaluate.sample import Answered, answer_problems
from megatron_atesd.model.parallel import is_main, parallel_session
from megatron_atesd.model.qwen3 import HiddenStateGPT, build_model, read_architecture, transformer_config
from megatron_atesd.records import Problem
from megatron_atesd.train.model_folder import find_hf, find_model_folder, load_model_weights


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate. `settings` gives prompt, sampling, parallel layout and dtype; its exposure plays no part."""

    model: Path
    data: Path
    out: Path
    samples: int
    seed: int
    grading_workers: int
    grading_seconds: float
    settings: TrainConfig


def evaluate(task: Evaluation) -> dict[str, Any] | None:
    """Average@K, pass@k and greedy accuracy with 95 % intervals, on rank 0 (None elsewhere).

    Writes <out>/evaluation.json and <out>/responses.jsonl. Raises the user's errors before the model is loaded.
    """
    if task.samples < 1:
        raise ConfigError(f"samples is {task.samples}, must be at least 1")
    folder = task.model if (task.model / "config.json").is_file() else find_model_folder(task.model)
    hf, problems = find_hf(folder), load_problems(task.data, task.settings.data.on_error)
    architecture, parallel = read_architecture(hf), task.settings.parallel
    with parallel_session(parallel.tensor, parallel.pipeline, task.seed, parallel.timeout_minutes):
        config = transformer_config(
            architecture, parallel.tensor, parallel.pipeline, False, task.settings.model.dtype, task.settings.megatron
        )
        model = build_model(architecture, config)
        load_model_weights(model, folder)
        renderer = PromptRenderer(load_tokenizer(hf), task.settings.prompt, task.settings.exposure.reveal)
        answered = _answers(task, model, renderer, problems)
        return _report(task, problems, answered) if is_main() else None


def _answers(task: Evaluation, model: HiddenStateGPT, renderer: PromptRenderer, problems: Sequence[Problem]) -> list[Answered]:
    def progress(done: int, total: int) -> None:
        if is_main():
            print(f"\r{done}/{total} responses", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return answer_problems(model, renderer, problems, task.samples, task.settings.rollout, task.seed, progress)


def _report(task: Evaluation, problems: Sequence[Problem], answered: Sequence[Answered]) -> dict[str, Any]:
    with Grader(task.grading_workers, task.grading_seconds) as grader:
        right = grader.grade([(a.text, problems[a.problem].answer) for a in answered])
        faults = {"grading_timeouts": grader.timeouts, "grading_crashes": grader.crashes}
    table = np.array(right).reshape(len(problems), task.samples + 1)  # column 0 is the greedy response
    sampled = [a for a in answered if a.sample >= 0]
    graded = all("difficulty" in p.metadata for p in problems)
    summary = summarize(table[:, 1:], table[:, 0], difficulty_of(problems, "difficulty") if graded else None, seed=task.seed)
    summary |= faults | {
        "mean_tokens": float(np.mean([a.tokens for a in sampled])),
        "truncated": float(np.mean([a.truncated for a in sampled])),
        "model": str(task.model),
        "data": str(task.data),
        "seed": task.seed,
        "rollout": asdict(task.settings.rollout),
    }
    task.out.mkdir(parents=True, exist_ok=True)
    with (task.out / "responses.jsonl").open("w", encoding="utf-8") as file:
        for a, verdict in zip(answered, right, strict=True):
            file.write(json.dumps({"id": problems[a.problem].id, **asdict(a), "right": verdict}, ensure_ascii=False) + "\n")
    (task.out / "evaluation.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def with_sampling(settings: TrainConfig, temperature: float, top_p: float, top_k: int, max_new_tokens: int, thinking: bool) -> TrainConfig:
    """Settings with the evaluation's own sampling and the student's thinking switch."""
    rollout = replace(settings.rollout, temperature=temperature, top_p=top_p, top_k=top_k, max_new_tokens=max_new_tokens)
    return replace(settings, rollout=rollout, prompt=replace(settings.prompt, student_thinking=thinking))
