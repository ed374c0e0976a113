"""Whether a folder's responses were made as they would be made now: what decides a response is written down beside them."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_atesd.checkpoint.fingerprint import fingerprint
from megatron_atesd.config import TrainConfig
from megatron_atesd.errors import ConfigError
from megatron_atesd.evaluate.flags import FLAGS
from megatron_atesd.records import Problem

SETTINGS = "settings.json"
_MADE = ("responses.jsonl", "evaluation.json", "unfinished")

Decisive = dict[str, Any]


def decisive_settings(settings: TrainConfig, folder: Path, problems: Sequence[Problem], samples: int, seed: int) -> Decisive:
    """All that decides which responses there are and what each says, JSON-ready, by the name of its flag or setting.

    folder: the model's. Files count by their contents: the problems' ids and texts in their order (an answer only decides the grade), and
    the model's `fingerprint`. The parallel layout and how the engine works (engine.batch, …) do not count.
    """
    texts = json.dumps([(problem.id, problem.problem) for problem in problems])
    prompt = settings.prompt
    return {
        "--model": str(folder.resolve()),
        "what is in --model": fingerprint(folder),
        "the problems in --data": hashlib.sha256(texts.encode()).hexdigest()[:16],
        "--samples": samples,
        "--seed": seed,
        **{FLAGS[f"rollout.{name}"]: value for name, value in asdict(settings.rollout).items()},
        "--engine": settings.engine.name,
        "--thinking": prompt.student_thinking,
        "prompt.instruction": prompt.instruction,
        "model.dtype": settings.model.dtype,
        "model.attention": settings.model.attention,
        "precision.rollout": settings.precision.rollout,
        "megatron": settings.megatron,
    }


def check_same(out: Path, wanted: Decisive) -> None:
    """Raise ConfigError that names what differs where `out` holds responses that were made otherwise, or does not say how."""
    remedy = "; give another --out, or remove this folder to begin anew"
    try:
        there = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
        if not isinstance(there, dict):
            raise ValueError("no mapping")
    except (FileNotFoundError, NotADirectoryError):
        if made := [name for name in _MADE if (out / name).exists()]:
            raise ConfigError(f"--out {out} has {made[0]} but no {SETTINGS} that says how it was made{remedy}") from None
        return
    except (OSError, ValueError) as error:
        raise ConfigError(f"{out / SETTINGS} cannot be read ({error}){remedy}") from None
    if different := list(_differences(there, wanted)):
        raise ConfigError(f"--out {out} holds an evaluation with other settings: {', '.join(different)}{remedy}, or go on with those")


def _differences(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys((*wanted, *there)):
        old, new = (json.dumps(values.get(name), sort_keys=True, ensure_ascii=False) for values in (there, wanted))
        if old != new:
            yield f"{name} differ{'' if name.startswith('the problems') else 's'}" if " in --" in name else f"{name} is {new}, there {old}"
