"""Every way to choose exposure on every kind of simulated student, at several lengths of training: one table of figures.

All modes hold an exposure for equally many updates, so that at each length all have the same updates and the same number of decisions.
Every mode meets the same students: a seed draws the same noise for all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from megatron_atesd.config import ExposureConfig, validate_exposure
from megatron_atesd.config.exposure_rules import BINNED
from megatron_atesd.exposure.simulated_student import StudentModel, in_bins
from megatron_atesd.exposure.simulation_figures import Figures
from megatron_atesd.exposure.simulation_work import Key, Part

PAPER = ExposureConfig(mode="learned", replay=0)  # [paper] wherever the paper says something
# learned-margin of examples/mini_study
OURS = ExposureConfig(mode="learned", grounding="off", advantage="ema", batch=1, positive_part=False)
FULL_WAY = 100  # updates in which a student goes as far as `start` says
STEPS = 100  # of α and of the training, in the search of the best constant


@dataclass(frozen=True)
class Choice:
    """A way to choose exposure. rho: the correlation of its scores with the truth, where it has any."""

    config: ExposureConfig
    rho: float | None = None


@dataclass(frozen=True)
class Case:
    """Students that one run trains: more than one are difficulty bins, with one exposure for all, or a controller each (`apart`)."""

    students: tuple[StudentModel, ...]
    meaning: str
    apart: bool = False


def choices(hold: int, rhos: Sequence[float]) -> dict[str, Choice]:
    """By name, all with windows of `hold` updates. rhos: each is an `aligned` of its own."""
    named = {
        "fixed-0.5": Choice(ExposureConfig(mode="fixed", fixed=0.5)),
        "fixed-1": Choice(ExposureConfig(mode="fixed", fixed=1.0)),
        "random": Choice(ExposureConfig(mode="random")),
        "linear": Choice(ExposureConfig(mode="linear")),
        "step": Choice(ExposureConfig(mode="step")),
        "target_kl": Choice(ExposureConfig(mode="target_kl")),
        "learned-paper": Choice(PAPER),
        "learned-ours": Choice(OURS),
        "posterior": Choice(ExposureConfig(mode="posterior")),
    }
    named |= {f"aligned-{rho:g}": Choice(ExposureConfig(mode="aligned"), rho) for rho in rhos}
    return {name: Choice(replace(choice.config, hold=hold), choice.rho) for name, choice in named.items()}


def cases(base: StudentModel) -> dict[str, Case]:
    """By name: students like `base`, but for what their meaning says."""

    def one(meaning: str, **settings: Any) -> Case:
        return Case((replace(base, **settings),), meaning)

    both = in_bins(base, (0.9, 0.2))
    return {
        **{f"optimum-{at:g}": one(f"fastest at α = {at:g}, always", optimum=at) for at in (0.2, 0.5, 0.9, 1.0)},
        "falling": one("fastest at 0.9 at first, at 0.3 in the end", optimum=0.9, final_optimum=0.3),
        "rising": one("fastest at 0.3 at first, at 0.9 in the end", optimum=0.3, final_optimum=0.9),
        "delayed": one("fastest at 0.9; an exposure acts 5 updates later", optimum=0.9, delay=5),
        "momentum": one("fastest at 0.9; momentum 0.9, steady probe", optimum=0.9, momentum=0.9, probe_noise=2e-5),
        "cliff": one("fastest at 0.7; gentle below, lost at 0.8", optimum=0.7, below=1.4, above=0.1),
        "flat": one("α makes no difference", worst=base.best),
        "bins-one-α": Case(both, "bins, fastest at 0.9 and 0.2; one α for both"),
        "bins-apart": Case(both, "bins, fastest at 0.9 and 0.2; an α each", apart=True),
    }


def parts(named: Mapping[str, Choice], students: Mapping[str, Case], decisions: Sequence[int], hold: int, seeds: int) -> list[Part]:
    """All cells; modes that know no bins have none with bins apart. Raises ConfigError for settings that a training would refuse."""
    found = []
    for count in decisions:
        for student, case in students.items():
            for mode, choice in named.items():
                config = _for_bins(choice.config, len(case.students)) if case.apart else choice.config
                if case.apart and config.mode not in BINNED:
                    continue
                validate_exposure(config, count * hold)
                trained = tuple(_for_length(model, choice, count * hold) for model in case.students)
                found.append(Part(mode, student, count, config, trained, count * hold, seeds))
    return found


def best_constant(case: Case) -> tuple[list[float], float] | None:
    """The constant exposure (with bins apart: of each) that loses least, found with hindsight, and its regret. None of a flat student."""
    if any(student.flat for student in case.students):
        return None
    grid = [i / STEPS for i in range(STEPS + 1)]
    lost = [[fmean(student.regret(alpha, share) for share in grid) for alpha in grid] for student in case.students]
    groups = [[each] for each in lost] if case.apart else [lost]
    curves = [[fmean(values) for values in zip(*group, strict=True)] for group in groups]
    return [grid[curve.index(min(curve))] for curve in curves], fmean(map(min, curves))


def results(
    named: Mapping[str, Choice], students: Mapping[str, Case], todo: Sequence[Part], found: Mapping[Key, Figures]
) -> dict[str, Any]:
    """What was compared, and a row for every part of `todo`, whose figures are in `found` by its key. Plain values, for JSON."""
    return {
        "seeds": todo[0].seeds,
        "hold": todo[0].config.hold,
        "modes": {name: {"settings": _changed(choice.config), "rho": choice.rho} for name, choice in named.items()},
        "students": {name: _described(case) for name, case in students.items()},
        "rows": [
            {"mode": part.mode, "student": part.student, "decisions": part.decisions, "updates": part.updates, **found[part.key]}
            for part in todo
        ],
    }


def _for_bins(config: ExposureConfig, bins: int) -> ExposureConfig:
    return replace(config, bins=bins, fixed_by_bin=[config.fixed] * bins)


def _for_length(student: StudentModel, choice: Choice, updates: int) -> StudentModel:
    """A run of any length goes the same part of its way: the signal of an update is alike in short and in long runs."""
    rho = student.rho if choice.rho is None else choice.rho
    return replace(student, start=student.start * updates / FULL_WAY, rho=rho)


def _changed(config: ExposureConfig) -> dict[str, Any]:
    """The settings that are not the defaults, and the mode."""
    defaults = asdict(ExposureConfig())
    return {name: value for name, value in asdict(config).items() if name == "mode" or value != defaults[name]}


def _described(case: Case) -> dict[str, Any]:
    best = best_constant(case)
    constant = None if best is None else {"alpha": best[0], "regret": best[1]}
    return {"meaning": case.meaning, "apart": case.apart, "bins": [asdict(student) for student in case.students], "constant": constant}
