"""Arms compared with a baseline on the same problems: paired differences of Average@K, what may be chance, and a sentence that says so.

An arm is one finished evaluation, or several of runs that differ in their seed; then its problems' shares are averaged over the runs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_atesd.evaluate.comparable import FEWEST_SEEDS, Arms, check_same_problems, one_model, other_settings, unjudged_seeds
from megatron_atesd.evaluate.finished import Finished
from megatron_atesd.evaluate.tables import signed
from megatron_atesd.evaluate.uncertainty import (
    Spread,
    detectable_difference,
    holm,
    mean_difference,
    mean_interval,
    seed_interval,
    seed_spread,
)

_DESCRIBED = ("greedy", "majority_at_k", "with_answer", "truncated", "loops", "mean_tokens")


def compare(arms: Arms) -> dict[str, Any]:
    """All figures of a comparison with the first arm, JSON-ready; docs/evaluation.md says what each means.

        {"figure": "average_at_k", "baseline": name, "problems": N, "comparisons": arms but the first,
         "warnings": [text, …], "notes": [text, …],
         "arms": {name: {"runs": [{"folder", "seed", "samples", "average_at_k"}, …], "average_at_k", "ci95", "ci95_seeds",
                         and means over the runs of "greedy", "majority_at_k", "with_answer", "truncated", "loops", "mean_tokens"}, …},
         "differences": {name: {"difference", "ci95", "p_value", "p_value_corrected", "detectable", "seeds_of": [name, …],
                                "within_noise", "sentence"}, …}}

    Raises DataError where problems differ or one evaluation is given twice.
    """
    check_same_problems(arms)
    baseline, *others = arms
    comparisons = max(1, len(others))
    found = {name: _difference(arms, baseline, name, comparisons) for name in others}
    corrected = holm({name: entry["p_value"] for name, entry in found.items()})
    for name, entry in found.items():
        entry["p_value_corrected"] = corrected[name]
        entry["within_noise"] = corrected[name] >= 0.05
        entry["sentence"] = sentence(name, baseline, entry, comparisons)
    return {
        "figure": "average_at_k",
        "baseline": baseline,
        "problems": len(arms[baseline][0].ids),
        "comparisons": len(others),
        "warnings": list(other_settings(arms)),
        "notes": [*unjudged_seeds(arms), *one_model(arms)],
        "arms": {name: _figures(runs) for name, runs in arms.items()},
        "differences": found,
    }


def _difference(arms: Arms, baseline: str, name: str, comparisons: int) -> dict[str, Any]:
    """Of an arm and the baseline; the interval holds together with those of the other arms, p_value is of this one alone."""
    judged = [arm for arm in (baseline, name) if len(arms[arm]) >= FEWEST_SEEDS]
    seeds: list[Spread] = [seed_spread([run.shares_N.mean() for run in arms[arm]]) for arm in judged]
    ours_N, theirs_N = _shares(arms[name]), _shares(arms[baseline])
    together = mean_difference(ours_N, theirs_N, comparisons, seeds)
    alone = mean_difference(ours_N, theirs_N, seeds=seeds)
    detectable = detectable_difference(ours_N, theirs_N, comparisons, seeds)
    return {**together, "p_value": alone["p_value"], "detectable": detectable, "seeds_of": judged}


def _shares(runs: Sequence[Finished]) -> NDArray[np.float64]:
    """Of each problem's samples those that are right, averaged over runs, [N]."""
    return np.mean([run.shares_N for run in runs], axis=0)


def _figures(runs: Sequence[Finished]) -> dict[str, Any]:
    shares, means = _shares(runs), [float(run.shares_N.mean()) for run in runs]
    told = [
        {"folder": str(run.folder), "seed": run.summary.get("seed"), "samples": run.correct_NK.shape[1], "average_at_k": mean}
        for run, mean in zip(runs, means, strict=True)
    ]
    return {
        "runs": told,
        "average_at_k": float(shares.mean()),
        "ci95": [float(end) for end in mean_interval(shares)],
        "ci95_seeds": list(seed_interval(means)) if len(runs) >= FEWEST_SEEDS else None,
        **{name: _mean_of(name, runs) for name in _DESCRIBED},
    }


def _mean_of(name: str, runs: Sequence[Finished]) -> float | None:
    """Of a figure over runs; None where one of them does not have it."""
    values: list[Any] = [run.summary.get(name) for run in runs]
    return None if None in values else float(np.mean(values))


def sentence(name: str, baseline: str, entry: Mapping[str, Any], comparisons: int) -> str:
    """What a difference is worth, in plain words."""
    points, (low, high) = 100 * entry["difference"], entry["ci95"]
    place = f"{abs(points):.1f} points {'above' if points > 0 else 'below'}" if round(abs(points), 1) else "level with"
    together = f" (Holm, {comparisons} comparisons)" if comparisons > 1 else ""
    p_value = f"p {'below 0.0001' if entry['p_value_corrected'] < 0.0001 else f'''= {entry['p_value_corrected']:.2g}'''}{together}"
    interval = f"the interval {signed(low)} … {signed(high)}"
    if entry["within_noise"]:
        least = entry["detectable"]
        small = "" if least is None else f"; a true difference of {100 * least:.1f} points would be found in 4 of 5 such comparisons"
        return f"{name} is {place} {baseline}; {interval} includes 0: within noise, {p_value}{small}"
    if low <= 0 <= high:
        return (
            f"{name} is {place} {baseline}; more than noise, {p_value}, though {interval}, wider for {comparisons} comparisons, includes 0"
        )
    return f"{name} is {place} {baseline}; {interval} excludes 0: more than noise, {p_value}"
