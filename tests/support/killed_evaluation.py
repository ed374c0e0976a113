"""Evaluations in several processes: one that kills a rank of its own, with SIGKILL, and one whose second pipeline stage makes responses."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron.core import parallel_state

from megatron_atesd.config import ParallelConfig, PromptConfig, RolloutConfig, TrainConfig
from megatron_atesd.evaluate import evaluation
from megatron_atesd.evaluate.prepare import Evaluation
from megatron_atesd.rollout.engine import Finished, Response, RolloutEngine

SAMPLES = 5


class DyingEngine:
    """Another engine's responses, one by one; after so many (None: never) the process dies, or waits for its end where another dies."""

    def __init__(self, inner: RolloutEngine, responses: int | None, dies: bool) -> None:
        self.inner, self.left, self.dies, self.depends_on = inner, responses, dies, inner.depends_on

    def refresh(self) -> None:
        self.inner.refresh()

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: RolloutConfig, finished: Finished | None = None
    ) -> list[Response]:
        made = []
        for place, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            if self.left is not None and len(made) >= self.left:
                if self.dies:
                    os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()  # else it would die of a lost connection, of which the test would learn first
            made += self.inner.generate([prompt], [seed], sampling)
            assert finished is not None
            finished(place, made[-1])
        self.left = self.left and self.left - len(made)
        return made


def evaluate(inputs: Path, out: Path, tensor: int, dying: int, responses: int | None) -> dict[str, Any] | None:
    """An evaluation of the model in inputs/hf; rank `dying` dies after so many `responses` a rank."""
    build, rank = evaluation.build_engine, int(os.environ["RANK"])
    evaluation.build_engine = lambda *parts: DyingEngine(build(*parts), responses, rank == dying)
    return _evaluate(inputs, out, ParallelConfig(tensor=tensor))


class SecondStageEngine:
    """Another engine's responses, of which the second pipeline stage is told."""

    def __init__(self, inner: RolloutEngine) -> None:
        self.refresh, self.depends_on, self._generate = inner.refresh, inner.depends_on, inner.generate

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: RolloutConfig, finished: Finished | None = None
    ) -> list[Response]:
        made = self._generate(prompts, seeds, sampling)
        assert finished is not None
        for place in range(len(made)) if parallel_state.get_pipeline_model_parallel_rank() == 1 else ():
            finished(place, made[place])
        return made


def evaluate_on_second_stage(inputs: Path, out: Path) -> None:
    """An evaluation on two pipeline stages, whose second one makes all responses."""
    build = evaluation.build_engine
    evaluation.build_engine = lambda *parts: SecondStageEngine(build(*parts))
    _evaluate(inputs, out, ParallelConfig(pipeline=2))


def _evaluate(inputs: Path, out: Path, parallel: ParallelConfig) -> dict[str, Any] | None:
    settings = TrainConfig(
        parallel=parallel,
        prompt=PromptConfig(instruction=""),
        rollout=RolloutConfig(max_new_tokens=12, top_k=0, top_p=1.0, temperature=1.0),
    )
    return evaluation.evaluate(Evaluation(inputs / "hf", inputs / "probe.jsonl", out, SAMPLES, 1, 1, 5.0, settings))
