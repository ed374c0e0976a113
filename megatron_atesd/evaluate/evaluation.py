"""Evaluate one model on one problem file: sample, grade, summarise, write."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from megatron_atesd.checkpoint.model_folder import load_model_weights
from megatron_atesd.config import TrainConfig
from megatron_atesd.evaluate.average import difficulty_of, summarize
from megatron_atesd.evaluate.grading import Grader
from megatron_atesd.evaluate.prepare import Evaluation, Prepared, prepare
from megatron_atesd.evaluate.sample import Answered, answer_problems
from megatron_atesd.model.gpt import HiddenStateGPT, build_model
from megatron_atesd.parallel.groups import is_main
from megatron_atesd.parallel.session import end_start, session_of
from megatron_atesd.rollout.engines import build_engine


def evaluate(task: Evaluation) -> dict[str, Any] | None:
    """Average@K, pass@k and greedy accuracy with 95 % intervals, on rank 0 (None elsewhere).

    Writes <out>/evaluation.json and <out>/responses.jsonl. Every setting, problem and prompt is checked before process groups are made
    and the model is loaded (see `prepare`). After that only weights that are missing or damaged, and a grading process that does not
    start, are refused.
    """
    with Grader(task.grading_workers, task.grading_seconds) as grader:
        prepared, parallel = prepare(task, int(os.environ.get("WORLD_SIZE", "1"))), task.settings.parallel
        with session_of(parallel, task.seed):
            model = build_model(prepared.model.architecture, prepared.megatron)
            load_model_weights(model, prepared.model.folder)
            end_start(parallel)
            answered = _answers(task, model, prepared)
            return _report(task, prepared, answered, grader) if is_main() else None


def _answers(task: Evaluation, model: HiddenStateGPT, prepared: Prepared) -> list[Answered]:
    def progress(done: int, total: int) -> None:
        if is_main():
            print(f"\r{done}/{total} responses", end="\n" if done == total else "", file=sys.stderr, flush=True)

    renderer, settings = prepared.model.renderer, task.settings
    engine = build_engine(settings, model, renderer, prepared.model.hf_folder)
    engine.refresh()
    return answer_problems(engine, renderer, prepared.problems, prepared.prompts, task.samples, settings.rollout, task.seed, progress)


def _report(task: Evaluation, prepared: Prepared, answered: Sequence[Answered], grader: Grader) -> dict[str, Any]:
    problems = prepared.problems
    right = grader.grade([(a.text, problems[a.problem].answer) for a in answered])
    faults = {"grading_timeouts": grader.timeouts, "grading_crashes": grader.crashes}
    table = np.array(right).reshape(len(problems), task.samples + 1)  # column 0 is the greedy response
    sampled = [a for a in answered if a.sample >= 0]
    graded = all("difficulty" in p.metadata for p in problems)
    summary = summarize(table[:, 1:], table[:, 0], difficulty_of(problems, "difficulty") if graded else None)
    summary |= faults | {
        "mean_tokens": float(np.mean([a.tokens for a in sampled])),
        "truncated": float(np.mean([a.truncated for a in sampled])),
        "model": str(prepared.model.folder),
        "data": str(task.data),
        "seed": task.seed,
        "rollout": asdict(task.settings.rollout),
    }
    with (task.out / "responses.jsonl").open("w", encoding="utf-8") as file:
        for a, verdict in zip(answered, right, strict=True):
            file.write(json.dumps({"id": problems[a.problem].id, **asdict(a), "right": verdict}, ensure_ascii=False) + "\n")
    (task.out / "evaluation.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def with_sampling(settings: TrainConfig, temperature: float, top_p: float, top_k: int, max_new_tokens: int, thinking: bool) -> TrainConfig:
    """Settings with the evaluation's own sampling and the student's thinking switch."""
    rollout = replace(settings.rollout, temperature=temperature, top_p=top_p, top_k=top_k, max_new_tokens=max_new_tokens)
    return replace(settings, rollout=rollout, prompt=replace(settings.prompt, student_thinking=thinking))
