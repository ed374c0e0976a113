"""What an evaluation's responses look like, besides being right: votes, answers, cuts, loops and lengths. Pure numpy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megatron_atesd.data.boxes import final_boxed
from megatron_atesd.evaluate.responses import Answered
from megatron_atesd.evaluate.uncertainty import mean_interval

_PARTS = (10, 50, 90)  # percent of the responses that are at most so long


@dataclass(frozen=True)
class Sampled:
    """Of K samples of each of N problems. loop_NK: None where it is not known. vote_N: see `majority.majority_values`."""

    answer_NK: NDArray[np.bool_]
    truncated_NK: NDArray[np.bool_]
    loop_NK: NDArray[np.bool_] | None
    tokens_NK: NDArray[np.int64]
    vote_N: NDArray[np.float64]

    def rows(self, rows: NDArray[np.bool_]) -> "Sampled":
        """Of some of the problems."""
        loops = None if self.loop_NK is None else self.loop_NK[rows]
        return Sampled(self.answer_NK[rows], self.truncated_NK[rows], loops, self.tokens_NK[rows], self.vote_N[rows])


def sampled_of(answered: Sequence[Answered], vote_N: NDArray[np.float64]) -> Sampled:
    """answered: the N · K samples, by problem and sample, without greedy responses."""
    shape = (len(vote_N), -1)
    loops = [a.loop for a in answered]
    return Sampled(
        answer_NK=np.array([final_boxed(a.text) is not None for a in answered], dtype=bool).reshape(shape),
        truncated_NK=np.array([a.truncated for a in answered], dtype=bool).reshape(shape),
        loop_NK=None if None in loops else np.array(loops, dtype=bool).reshape(shape),
        tokens_NK=np.array([a.tokens for a in answered], dtype=np.int64).reshape(shape),
        vote_N=vote_N,
    )


def response_figures(correct_NK: ArrayLike, sampled: Sampled) -> dict[str, Any]:
    """The figures of the samples that `sampled` knows, JSON-ready; shares are in [0, 1].

        {"majority_at_k": share, "majority_at_k_ci95": [low, high],          the vote of the K samples is right
         "with_answer": share, "with_answer_ci95": [low, high],              a box that holds something
         "truncated": share, "truncated_ci95": [low, high],                  cut at the limit
         "loops": share, "loops_ci95": [low, high],                          cut while the same repeats; both null where it is not known
         "mean_tokens": tokens, "tokens": {"mean", "p10", "p50", "p90", "max"}, "tokens_right": the same, "tokens_wrong": the same}

    Intervals over problems, see `uncertainty.mean_interval`. tokens_right and tokens_wrong are of the right and of the wrong responses,
    null where there are none. A response's tokens include its stop token.
    """
    correct = np.asarray(correct_NK, dtype=bool)
    shares = {
        "majority_at_k": sampled.vote_N,
        "with_answer": sampled.answer_NK.mean(axis=1),
        "truncated": sampled.truncated_NK.mean(axis=1),
        "loops": None if sampled.loop_NK is None else sampled.loop_NK.mean(axis=1),
    }
    figures: dict[str, Any] = {}
    for name, values_N in shares.items():
        figures[name] = None if values_N is None else float(values_N.mean())
        figures[f"{name}_ci95"] = None if values_N is None else [float(end) for end in mean_interval(values_N)]
    lengths = {"tokens": sampled.tokens_NK.ravel(), "tokens_right": sampled.tokens_NK[correct], "tokens_wrong": sampled.tokens_NK[~correct]}
    return figures | {"mean_tokens": float(sampled.tokens_NK.mean())} | {name: _lengths(tokens) for name, tokens in lengths.items()}


def _lengths(tokens: NDArray[np.int64]) -> dict[str, float] | None:
    if tokens.size == 0:
        return None
    parts = {f"p{part}": float(np.percentile(tokens, part)) for part in _PARTS}
    return {"mean": float(tokens.mean()), **parts, "max": float(tokens.max())}
