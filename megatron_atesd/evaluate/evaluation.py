"""Evaluate one model on one problem file: sample, grade, summarise, write."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any, Literal

import torch.distributed as dist

from megatron_atesd.checkpoint.model_folder import load_model_weights
from megatron_atesd.config import RolloutConfig, TrainConfig, naming_section
from megatron_atesd.evaluate.figures import figures_of
from megatron_atesd.evaluate.grading import Grader
from megatron_atesd.evaluate.prepare import Evaluation, Prepared, prepare
from megatron_atesd.evaluate.protocol import protocol_record
from megatron_atesd.evaluate.responses import Answered, Key, ResponseReader, ResponseWriter, finish, write_whole
from megatron_atesd.evaluate.same_settings import SETTINGS
from megatron_atesd.evaluate.sample import answer_problems
from megatron_atesd.evaluate.watch import Watch
from megatron_atesd.logs import tell
from megatron_atesd.model.gpt import build_model
from megatron_atesd.parallel.agreement import on_rank_0
from megatron_atesd.parallel.groups import is_main, patient_barrier, tensor_parallel_first
from megatron_atesd.parallel.session import end_start, session_of
from megatron_atesd.rollout.engines import build_engine


def evaluate(task: Evaluation) -> dict[str, Any] | None:
    """Average@K, pass@k and greedy accuracy with 95 % intervals, on rank 0 (None elsewhere).

    Writes <out>/settings.json, while it goes on <out>/unfinished/, in the end <out>/evaluation.json and <out>/responses.jsonl. Responses
    that are there are not generated again; where all are there, the model is not loaded.
    Every setting, problem and prompt, and whether <out> has responses made otherwise, is checked before process groups are made and the
    model is loaded (see `prepare`). After that only weights that are missing or damaged, a grading process that does not start, and a
    disk that takes no more are refused.
    """
    with Grader(task.grading_workers, task.grading_seconds) as grader:
        prepared = prepare(task, int(os.environ.get("WORLD_SIZE", "1")))
        with session_of(task.settings.parallel, task.seed):
            reader = ResponseReader(task.out, prepared.problems, task.samples)
            there = on_rank_0(lambda: _begin(task, prepared, reader), f"--out {task.out} cannot be used")
            opening = prepared.model.renderer.opening
            watch = Watch(reader, grader, prepared.problems, task.grading_workers, opening) if is_main() else None
            if len(there) < reader.total:
                _generate(task, prepared, there, watch)
            return None if watch is None else _report(task, prepared, reader.read_all(), watch, grader)


def _begin(task: Evaluation, prepared: Prepared, reader: ResponseReader) -> dict[Key, int]:
    """Write down what decides the responses; the tokens of each response that is there."""
    write_whole(task.out / SETTINGS, (json.dumps(prepared.decisive, indent=2, ensure_ascii=False) + "\n").encode())
    if reader.read_on():
        tell(f"{len(reader.found)} of {reader.total} responses are in {task.out} already")
    return {key: a.tokens for key, a in reader.found.items()}


def _generate(task: Evaluation, prepared: Prepared, there: Mapping[Key, int], watch: Watch | None) -> None:
    """What is not there yet. Collective over all ranks, each of which may take as long as it needs."""
    settings, renderer = task.settings, prepared.model.renderer
    with naming_section("megatron", settings.megatron):
        model = build_model(prepared.model.architecture, prepared.megatron)
    load_model_weights(model, prepared.model.folder, settings.model.path)
    engine = build_engine(settings, model, renderer, prepared.model.hf_folder)
    engine.refresh()
    wait_for_all = patient_barrier()
    end_start(settings.parallel)
    writer = ResponseWriter(task.out, dist.get_rank(), prepared.problems) if tensor_parallel_first() else None
    finished = writer.write if writer else lambda _: None
    problems, prompts = prepared.problems, prepared.prompts
    with watch or nullcontext():
        with writer or nullcontext():
            answer_problems(engine, renderer, problems, prompts, task.samples, settings.rollout, task.seed, there, finished)
        wait_for_all()


def _report(task: Evaluation, prepared: Prepared, answered: Sequence[Answered], watch: Watch, grader: Grader) -> dict[str, Any]:
    problems, settings = prepared.problems, task.settings
    right = watch.verdicts(answered)
    faults = {"grading_timeouts": grader.timeouts, "grading_crashes": grader.crashes}
    summary = figures_of(problems, answered, right, grader.same, prepared.model.renderer.opening)
    summary |= faults | {
        "protocol": protocol_record(task.protocol, task.samples, settings.prompt.student_thinking, settings.rollout),
        "model": str(prepared.model.folder),
        "data": str(task.data),
        "seed": task.seed,
        "rollout": asdict(settings.rollout),
        "engine": settings.engine.name,
    }
    finish(task.out, answered, right, problems, summary)
    return summary


def with_flags(settings: TrainConfig, rollout: RolloutConfig, engine: Literal["training", "vllm"], thinking: bool) -> TrainConfig:
    """Settings with the evaluation's own sampling, engine and thinking switch of the student, see `flags.FLAGS`."""
    prompt = replace(settings.prompt, student_thinking=thinking)
    return replace(settings, rollout=rollout, engine=replace(settings.engine, name=engine), prompt=prompt)
