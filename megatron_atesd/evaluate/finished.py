"""A finished evaluation read back from its folder: which problems, what was right, how it was made."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_atesd.errors import DataError
from megatron_atesd.evaluate.responses import RESPONSES
from megatron_atesd.evaluate.same_settings import SETTINGS


@dataclass(frozen=True)
class Finished:
    """ids: of the N problems, in order. settings: what decided the responses; empty where the folder does not say."""

    folder: Path
    ids: tuple[str, ...]
    correct_NK: NDArray[np.bool_]
    summary: dict[str, Any]
    settings: dict[str, Any]

    @property
    def shares_N(self) -> NDArray[np.float64]:
        """Of each problem's samples, those that are right."""
        return self.correct_NK.mean(axis=1)


def read_finished(folder: Path) -> Finished:
    """Raises DataError, with the folder, for one that holds no finished evaluation."""
    try:
        summary = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        lines = [json.loads(line) for line in (folder / RESPONSES).read_bytes().splitlines()]  # a text may hold U+2028
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8")) if (folder / SETTINGS).exists() else {}
    except (FileNotFoundError, NotADirectoryError) as error:
        missing = Path(str(error.filename)).name
        raise DataError(f"{folder} has no {missing}: give the --out of a tools/evaluate.py that has come to its end") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} cannot be read ({error}): run its tools/evaluate.py once more") from None
    try:
        rows: dict[str, dict[int, bool]] = {}
        for line in lines:
            rows.setdefault(str(line["id"]), {})[int(line["sample"])] = bool(line["right"])
        table = [[right for sample, right in sorted(row.items()) if sample >= 0] for row in rows.values()]
        correct = np.array(table, dtype=bool)
        if correct.ndim != 2 or correct.size == 0 or not isinstance(summary, dict) or not isinstance(settings, dict):
            raise ValueError("no table of graded samples")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder / RESPONSES} is not what tools/evaluate.py wrote ({error!r}): run it once more") from None
    return Finished(folder, tuple(rows), correct, summary, settings)
