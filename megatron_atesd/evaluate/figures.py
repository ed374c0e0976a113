"""All figures of one evaluation, from its responses and the verdict on each."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from megatron_atesd.evaluate.average import difficulty_of, summarize
from megatron_atesd.evaluate.majority import Same, majority_values
from megatron_atesd.evaluate.response_figures import sampled_of
from megatron_atesd.evaluate.responses import Answered
from megatron_atesd.records import Problem


def figures_of(
    problems: Sequence[Problem], answered: Sequence[Answered], right: Sequence[bool], same: Same, opening: str = ""
) -> dict[str, Any]:
    """`summarize` of the samples, by difficulty where each problem has one, with the greedy responses where there are any.

    answered: by problem and sample, the greedy one (sample −1) first. same: `Grader.same`. opening: `PromptRenderer.opening`.
    """
    table = np.array(right).reshape(len(problems), -1)
    greedy = 1 if answered[0].sample < 0 else 0
    samples = [replace(a, text=opening + a.text) for a in answered if a.sample >= 0]
    count = len(samples) // len(problems)
    texts = [[a.text for a in samples[start : start + count]] for start in range(0, len(samples), count)]
    sampled = sampled_of(samples, majority_values(texts, table[:, greedy:].tolist(), same))
    labels = difficulty_of(problems, "difficulty") if all("difficulty" in p.metadata for p in problems) else None
    return summarize(table[:, greedy:], table[:, 0] if greedy else None, labels, sampled)
