"""Whether the progress signals prefer the exposures after which the student solves more: the arithmetic and the words of a bias check."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import sqrt
from typing import Any

import numpy as np

from megatron_atesd.evaluate.uncertainty import mean_difference

LIKELIHOODS = ("probe_nll", "probe_own", "probe_margin")  # nats a token, lower is better
_DOUBT = 0.05  # with which all pairs of exposures together may be told apart wrongly


@dataclass(frozen=True)
class Reading:
    """What is measured of one state. losses: by name of LIKELIHOODS, those there are. accuracy_N: of each probe problem, share right."""

    losses: Mapping[str, float]
    accuracy_N: tuple[float, ...]


@dataclass(frozen=True)
class Pair:
    """Two exposures that accuracy tells apart, or might; gain: by how much it is higher after `better`, error: its standard error."""

    better: float
    worse: float
    gain: float
    error: float
    clear: bool


@dataclass(frozen=True)
class BiasCheck:
    """Some updates from one state at each of several exposures.

    samples: responses to each probe problem at each reading. before: the state's reading. after: by exposure. skipped: updates of each
    exposure whose loss or gradient was not finite.
    """

    updates: int
    samples: int
    before: Reading
    after: Mapping[float, Reading]
    skipped: Mapping[float, int]

    def change(self, name: str, alpha: float) -> float:
        """Of a likelihood, nats a token; negative is progress."""
        return self.after[alpha].losses[name] - self.before.losses[name]

    def gain(self, alpha: float) -> tuple[float, float]:
        """Of accuracy, a share, with its standard error over the probe problems (NaN where there is one)."""
        return _paired(self.after[alpha], self.before)

    @cached_property
    def pairs(self) -> list[Pair]:
        """All pairs of exposures, the largest difference first."""
        found = [self._pair(a, b) for a, b in combinations(self.after, 2)]
        return sorted(found, key=lambda pair: -pair.gain)

    def _pair(self, a: float, b: float) -> Pair:
        gain, error = _paired(self.after[a], self.after[b])
        better, worse = (a, b) if gain >= 0 else (b, a)
        comparisons = len(self.after) * (len(self.after) - 1) // 2
        p_value = mean_difference(self.after[a].accuracy_N, self.after[b].accuracy_N, comparisons)["p_value"]
        return Pair(better, worse, abs(gain), error, p_value < _DOUBT)

    def misled(self, name: str) -> list[Pair]:
        """The pairs that accuracy tells apart and the likelihood `name` orders the other way."""
        return [p for p in self.pairs if p.clear and self.change(name, p.worse) < self.change(name, p.better)]

    @property
    def likelihoods(self) -> list[str]:
        """Names of those measured."""
        return list(self.before.losses)

    def verdict(self) -> str:
        """One sentence: what accuracy says of the likelihoods as progress signals."""
        if not any(pair.clear for pair in self.pairs):
            return self._noise()
        misled = {name: pairs[0] for name in self.likelihoods if (pairs := self.misled(name))}
        if "probe_nll" in misled:
            return f"{_prefers('probe_nll', misled['probe_nll'])}: {self._advice(misled)}"
        agreeing = [name for name in self.likelihoods if name not in misled]
        verb = "orders" if len(agreeing) == 1 else "order"
        words = [f"{_listed(agreeing)} {verb} the exposures as accuracy does, where it tells them apart"]
        words += [_prefers(name, pair) for name, pair in misled.items()]
        return "; ".join(words)

    def _noise(self) -> str:
        largest, favourites = self.pairs[0], {name: self._favourite(name) for name in self.likelihoods}
        words = (
            f"the differences of accuracy are within noise (the largest is {_points(largest)}): more probe problems or updates would tell"
        )
        if len(set(favourites.values())) > 1:
            words += "; " + ", ".join(f"{name} prefers α = {alpha:g}" for name, alpha in favourites.items())
        return words

    def _favourite(self, name: str) -> float:
        return min(self.after, key=lambda alpha: self.after[alpha].losses[name])

    def _advice(self, misled: Mapping[str, Pair]) -> str:
        for name in ("probe_margin", "probe_own"):
            if name in self.likelihoods and name not in misled:
                return f"follow {name}, which orders the exposures as accuracy does, where it tells them apart"
        also = [name for name in misled if name != "probe_nll"]
        return f"follow probe_accuracy{f' ({_listed(also)} err as well)' if also else ''}"

    def lines(self) -> Iterator[str]:
        """The table and the verdict, for a person."""
        problems, plural = len(self.before.accuracy_N), "" if self.updates == 1 else "s"
        yield (
            f"bias check: change after {self.updates} update{plural} at each exposure, from the same state; accuracy in points ± standard "
            f"error, of {self.samples} responses to each of {problems} probe problems, {100 * np.mean(self.before.accuracy_N):.1f} % before"
        )
        yield f"{'α':>6}" + "".join(f"{name:>14}" for name in self.likelihoods) + f"{'accuracy':>18}"
        for alpha in self.after:
            gain, error = self.gain(alpha)
            falls = "".join(f"{self.change(name, alpha):>+14.4f}" for name in self.likelihoods)
            note = f"  ({self.skipped[alpha]} updates skipped)" if self.skipped[alpha] else ""
            yield f"{alpha:>6g}{falls}{f'{100 * gain:+.1f} ± {100 * error:.1f}':>18}{note}"
        yield self.verdict()

    def record(self) -> dict[str, Any]:
        """The same, JSON-ready; accuracies are shares."""
        rows = []
        for alpha in self.after:
            gain, error = self.gain(alpha)
            changes = {name: self.change(name, alpha) for name in self.likelihoods}
            known = None if np.isnan(error) else error
            rows.append({"alpha": alpha, **changes, "accuracy": gain, "accuracy_error": known, "skipped": self.skipped[alpha]})
        return {
            "updates": self.updates,
            "samples": self.samples,
            "problems": len(self.before.accuracy_N),
            "before": {**self.before.losses, "accuracy": float(np.mean(self.before.accuracy_N))},
            "changes": rows,
            "verdict": self.verdict(),
        }


def _paired(first: Reading, second: Reading) -> tuple[float, float]:
    """Mean difference of accuracy over the problems, and its standard error."""
    differences_N = np.subtract(first.accuracy_N, second.accuracy_N)
    count = len(differences_N)
    return float(differences_N.mean()), float(differences_N.std(ddof=1)) / sqrt(count) if count > 1 else float("nan")


def _prefers(name: str, pair: Pair) -> str:
    return f"{name} prefers α = {pair.worse:g} to {pair.better:g}, but accuracy is {_points(pair)} higher after {pair.better:g}"


def _points(pair: Pair) -> str:
    return f"{100 * pair.gain:.1f} ± {100 * pair.error:.1f} points"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
