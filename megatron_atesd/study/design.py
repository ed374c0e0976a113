"""What a study compares: arms × tasks × bases × seeds, evaluated at one update that is fixed beforehand. No work is done here."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from megatron_atesd.config import TrainConfig
from megatron_atesd.paths import user_path


@dataclass(frozen=True)
class Bases:
    """The start models.

    names: one a model. make: commands that make the one called {base} in the folder {folder}; none where it is there already.
    model: its folder, Megatron or Hugging Face.
    """

    names: list[str]
    model: str
    make: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class Task:
    """Problem files, the same for all arms. make: commands that make them for {base} in {folder}; none where they are there already."""

    train: str
    probe: str
    test: str
    make: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class EvaluationPlan:
    """How models are judged; the names are those of tools/evaluate.py. update: after which one, decided beforehand."""

    update: int
    samples: int = 12
    temperature: float = 1.0
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    max_new_tokens: int = 38912
    thinking: bool = True
    engine: Literal["training", "vllm"] = "training"


@dataclass(frozen=True)
class SignalsPlan:
    """What progress signals say beside what accuracy gains: checks by tools/check_progress.py, whose words these are.

    updates: of a check, at each exposure of `alphas`. leads: after so many updates of a training at exposure lead_alpha; a check each.
    """

    updates: int = 25
    alphas: list[float] = field(default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0])
    leads: list[int] = field(default_factory=lambda: [0])
    lead_alpha: float = 0.5


@dataclass(frozen=True)
class Arm:
    """One rule for exposure. config: without paths, seed and run directory, which a run adds. tasks: on which it is tried."""

    name: str
    config: TrainConfig
    tasks: list[str]


@dataclass(frozen=True, order=True)
class Run:
    """One training: an arm on a task from a base with a seed."""

    seed: int
    base: str
    task: str
    arm: str

    def __str__(self) -> str:
        return f"{self.task}, base {self.base}, {self.arm}, seed {self.seed}"


@dataclass(frozen=True, order=True)
class Check:
    """One check of the signals: on a task, from a base, after `lead` updates, with the study's first seed."""

    base: str
    task: str
    lead: int

    def __str__(self) -> str:
        return f"{self.task}, base {self.base}, signals after {self.lead} updates"


@dataclass(frozen=True, order=True)
class Before:
    """The evaluation of a base before training, on a task."""

    base: str
    task: str


@dataclass(frozen=True)
class Study:
    """A whole study.

    before: settings with which bases are evaluated, and signals checked. fixed: arms that are points of the curve over α; the best of
    them is something to compare with, besides the arms of `references`. unit: what counts as one observation, a base (mean over its
    seeds) or each run.
    """

    file: Path
    out: Path
    bases: Bases
    tasks: dict[str, Task]
    before: TrainConfig
    arms: dict[str, Arm]
    seeds: list[int]
    evaluation: EvaluationPlan
    fixed: list[str]
    references: list[str]
    unit: Literal["base", "run"] = "base"
    processes: int = 1
    signals: SignalsPlan | None = None

    def runs(self) -> Iterator[Run]:
        """All runs, seed by seed and base by base, so that what is there at any time can be compared."""
        for seed in self.seeds:
            for base in self.bases.names:
                for task in self.tasks:
                    yield from (Run(seed, base, task, arm.name) for arm in self.arms.values() if task in arm.tasks)

    def checks(self) -> list[Check]:
        """All checks of signals, base by base."""
        leads = self.signals.leads if self.signals else []
        return [Check(base, task, lead) for base in self.bases.names for task in self.tasks for lead in leads]

    def parts(self) -> list[Before | Run | Check]:
        """All that has a result."""
        return [*self.runs(), *self.checks(), *(Before(base, task) for task, base in self.pairs())]

    def pairs(self) -> list[tuple[str, str]]:
        """Every task and base."""
        return [(task, base) for task in self.tasks for base in self.bases.names]

    def base_folder(self, base: str) -> Path:
        return self.out / "bases" / base

    def data_folder(self, task: str, base: str) -> Path:
        return self.out / "data" / task / base

    def before_folder(self, task: str, base: str) -> Path:
        """Of the evaluation of a base."""
        return self.out / "before" / task / base

    def run_folder(self, run: Run) -> Path:
        return self.out / "runs" / run.task / run.base / run.arm / str(run.seed)

    def check_folder(self, check: Check) -> Path:
        return self.out / "signals" / check.task / check.base / str(check.lead)

    def model(self, base: str) -> Path:
        return user_path(filled(self.bases.model, self.base_folder(base), base))

    def problems(self, task: str, base: str) -> dict[str, Path]:
        """Path by train, probe, test."""
        files, folder = self.tasks[task], self.data_folder(task, base)
        return {name: user_path(filled(getattr(files, name), folder, base)) for name in ("train", "probe", "test")}

    def config(self, run: Run) -> TrainConfig:
        """All settings of a run, so that the checkpoint to evaluate is kept."""
        config, update = self.arms[run.arm].config, self.evaluation.update
        lost = update < config.run.updates and (config.checkpoint.keep_every == 0 or update % config.checkpoint.keep_every)
        kept = replace(config, checkpoint=replace(config.checkpoint, keep_every=update)) if lost else config
        return self._placed(kept, self.run_folder(run), run.task, run.base, run.seed)

    def check_config(self, check: Check) -> TrainConfig:
        """All settings of a check."""
        return self._placed(self.before, self.check_folder(check) / "run", check.task, check.base, self.seeds[0])

    def _placed(self, config: TrainConfig, folder: Path, task: str, base: str, seed: int) -> TrainConfig:
        files = self.problems(task, base)
        return replace(
            config,
            run=replace(config.run, dir=str(folder), seed=seed),
            model=replace(config.model, path=str(self.model(base))),
            data=replace(config.data, train=str(files["train"]), probe=str(files["probe"])),
        )


def filled(text: str, folder: Path | str, base: str, python: str = "") -> str:
    """A command or path of the study file with its places filled in."""
    for name, value in {"folder": str(folder), "base": base, "python": python}.items():
        text = text.replace(f"{{{name}}}", value)
    return text
