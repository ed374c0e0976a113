"""The parts of a study that can be done one by one: which commands make each, and whether it is done already."""

import json
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_atesd.checkpoint.fingerprint import fingerprint
from megatron_atesd.checkpoint.manifest import MANIFEST
from megatron_atesd.config import save_config
from megatron_atesd.errors import ConfigError
from megatron_atesd.study.decisive import DECISIVE, RECIPE, check_recipe, decisive_of, write_json
from megatron_atesd.study.design import Before, Check, EvaluationPlan, Run, Study, filled

ROOT = Path(__file__).resolve().parents[2]
TRAIN, EVALUATE, CHECK = (str(ROOT / "tools" / f"{name}.py") for name in ("train", "evaluate", "check_progress"))
SETTINGS, SIGNALS = "arm.yaml", "signals.json"


@dataclass(frozen=True)
class Step:
    """One process, or one torchrun. words: a script of this project and its arguments, or (plain) any command."""

    words: list[str]
    plain: bool = False


@dataclass(frozen=True)
class Unit:
    """A part. begin: gets everything ready and returns the steps that are left, none where it is done; end: after the last of them."""

    name: str
    log: Path
    begin: Callable[[], list[Step]]
    end: Callable[[], None] = lambda: None


def preparation(study: Study) -> list[Unit]:
    """Bases and problem files that commands make and that are not there. Raises ConfigError where other commands made what is there."""
    wanted = [(f"base {base}", "bases.make", study.base_folder(base), study.bases.make, base) for base in study.bases.names]
    wanted += [
        (f"problems of {task} for base {base}", f"tasks.{task}.make", study.data_folder(task, base), study.tasks[task].make, base)
        for task, base in study.pairs()
    ]
    for _, setting, folder, make, _ in wanted:
        if make:
            check_recipe(folder, setting, make)
    return [_making(name, folder, make, base) for name, _, folder, make, base in wanted if make and not folder.is_dir()]


def _making(name: str, folder: Path, make: list[str], base: str) -> Unit:
    """The folder has its name only when all commands have gone well."""
    partial = folder.with_name(f"{folder.name}.partial")

    def begin() -> list[Step]:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_json(partial / RECIPE, make)
        return [Step([filled(word, partial, base, sys.executable) for word in shlex.split(line)], plain=True) for line in make]

    return Unit(name, folder.with_name(f"{folder.name}.log"), begin, lambda: partial.rename(folder) and None)


def check_inputs(study: Study) -> None:
    """Raise ConfigError for a model folder or problem file that is not there, or a model that two bases share (after `preparation`)."""
    models: dict[str, str] = {}
    for base in study.bases.names:
        if not study.model(base).is_dir():
            raise ConfigError(f"bases.model is {study.model(base)} for base {base}, which is no folder")
        if (other := models.setdefault(_identity(study.model(base)), base)) != base:
            raise ConfigError(
                f"bases {other} and {base} are the same model ({study.model(base)}), and would pass for two observations; correct "
                "bases.make (does it use {base}?) or bases.model and remove the folder, or remove one of the names"
            )
    for task, base in study.pairs():
        for name, file in study.problems(task, base).items():
            if not file.is_file():
                raise ConfigError(f"tasks.{task}.{name} is {file} for base {base}, which is no file")


def _identity(model: Path) -> str:
    """Of what is in a folder with checksums, else of the folder itself: of a Hugging Face model there are only times to go by."""
    return fingerprint(model) if (model / MANIFEST).is_file() else str(model.resolve())


def evaluation_of_base(study: Study, task: str, base: str) -> Unit:
    """The base before training, on the task's held-out problems, with the study's first seed."""
    folder = study.before_folder(task, base)

    def begin() -> list[Step]:
        if is_evaluated(folder):
            return []
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / DECISIVE, decisive_of(study, Before(base, task)))
        save_config(study.before, folder / SETTINGS)
        return [_evaluate(study, folder / SETTINGS, study.model(base), task, base, study.seeds[0], folder)]

    return Unit(f"{task}, base {base}, before training", folder / "log.txt", begin)


def training_of(study: Study, run: Run) -> Unit:
    """A run: training up to its last update, then the evaluation at the update decided beforehand."""
    folder = study.run_folder(run)

    def begin() -> list[Step]:
        if is_evaluated(folder):
            return []
        folder.mkdir(parents=True, exist_ok=True)
        config = study.config(run)
        write_json(folder / DECISIVE, decisive_of(study, run))
        save_config(config, folder / SETTINGS)
        train = [] if is_trained(folder) else [Step([TRAIN, "--config", str(folder / SETTINGS)])]
        model = folder / "checkpoints" / f"step_{study.evaluation.update}"
        return [*train, _evaluate(study, folder / SETTINGS, model, run.task, run.base, run.seed, folder / "evaluation")]

    return Unit(str(run), folder / "log.txt", begin)


def check_of(study: Study, check: Check) -> Unit:
    """A check of the signals."""
    folder = study.check_folder(check)

    def begin() -> list[Step]:
        if (folder / SIGNALS).is_file() or study.signals is None:
            return []
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / DECISIVE, decisive_of(study, check))
        save_config(study.check_config(check), folder / SETTINGS)
        plan = study.signals
        given = {"--config": folder / SETTINGS, "--updates": plan.updates, "--alphas": ",".join(map(str, plan.alphas))}
        given |= {"--lead": check.lead, "--lead-alpha": plan.lead_alpha, "--out": folder / SIGNALS}
        return [Step([CHECK, *(str(word) for pair in given.items() for word in pair)])]

    return Unit(str(check), folder / "log.txt", begin)


def is_trained(folder: Path) -> bool:
    """Whether a run's training has come to its end: the summary is written last, and a torn one is none."""
    try:
        json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return True


def is_evaluated(folder: Path) -> bool:
    """Whether the evaluation in the folder of a run, or in one of its own, has come to its end."""
    return any((place / "evaluation.json").is_file() for place in (folder, folder / "evaluation"))


def _evaluate(study: Study, settings: Path, model: Path, task: str, base: str, seed: int, out: Path) -> Step:
    files = {"--config": settings, "--model": model, "--data": study.problems(task, base)["test"], "--out": out, "--seed": seed}
    words = [str(word) for pair in files.items() for word in pair]
    return Step([EVALUATE, *words, *_sampling(study.evaluation)])


def _sampling(plan: EvaluationPlan) -> list[str]:
    values: Mapping[str, Any] = asdict(plan)
    options = [(name, value) for name, value in values.items() if name not in ("update", "thinking")]
    words = [word for name, value in options for word in (f"--{name.replace('_', '-')}", str(value))]
    return [*words, "--thinking" if plan.thinking else "--no-thinking"]
