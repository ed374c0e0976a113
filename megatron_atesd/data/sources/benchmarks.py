"""The named data sets: where each can be had, and how its records are read. The texts are not part of this project."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_atesd.data.sources.cache import Download
from megatron_atesd.data.sources.champ import champ_records
from megatron_atesd.data.sources.columns import Reading
from megatron_atesd.data.sources.hub import HubSplit
from megatron_atesd.data.sources.package import PackageFile, json_lines


@dataclass(frozen=True)
class Benchmark:
    """help: a line about it. origins: by the word of --from, the default first; each a download and the way to read its records."""

    help: str
    origins: Mapping[str, tuple[Download, Reading]]


def _aime(year: int, size: int, sha256: str, columns: Mapping[str, str], hub: str) -> Benchmark:
    short = f"aime{year % 100}"
    extras = {"source": short, "competition": "AIME", "year": year}
    member = f"sgl_eval/_vendored/nemo_skills/dataset/{short}/test.txt"
    package = PackageFile("sgl-eval", "0.1.3", member, size, sha256, short, json_lines)
    return Benchmark(
        f"AIME {year}, 30 problems",
        {
            "package": (package, Reading({"answer": "expected_answer", **columns}, box_answers=True, extras=extras)),
            "hub": (HubSplit(hub, "train"), Reading(box_answers=True, extras=extras)),
        },
    )


def _from_hub(help: str, split: HubSplit, reading: Reading) -> Benchmark:
    return Benchmark(help, {"hub": (split, reading)})


def _extras(source: str, competition: str, year: int | None = None) -> dict[str, Any]:
    return {"source": source, "competition": competition} | ({} if year is None else {"year": year})


_WORKED = {"solution": "reference_solution"}

BENCHMARKS: dict[str, Benchmark] = {
    "aime24": _aime(2024, 61514, "e428f83ec735201c9db2a232727f4c20dbce87079ed386b6e3fb7f756d078756", _WORKED, "HuggingFaceH4/aime_2024"),
    "aime25": _aime(2025, 61949, "b672f9c6660b68dd42f5fc705b17405f24eaa9991c98991d63463c6b683468a8", _WORKED, "MathArena/aime_2025"),
    "aime26": _aime(2026, 13700, "6a43e48d55eb7736003f53074fef041a3da2b78d902d3fcd0b1974b2523221fc", {}, "MathArena/aime_2026"),
    "hmmt_feb25": _from_hub(
        "HMMT February 2025, 30 problems without solutions",
        HubSplit("MathArena/hmmt_feb_2025", "train"),
        Reading(box_answers=True, extras=_extras("hmmt_feb25", "HMMT February", 2025)),
    ),
    "math500": _from_hub(
        "MATH-500, with levels 1 to 5 as `difficulty`",
        HubSplit("HuggingFaceH4/MATH-500", "test"),
        Reading({"id": "unique_id", "difficulty": "level"}, extras=_extras("math500", "MATH")),
    ),
    "openthoughts_opsd": _from_hub(
        "the papers' 30,000 training problems",
        HubSplit("siyanzhao/Openthoughts_math_30k_opsd", "train"),
        Reading(extras={"source": "openthoughts_opsd"}),
    ),
    "champ": Benchmark(
        "CHAMP, 270 competition problems with an expert's steps",
        {
            "package": (
                PackageFile(
                    "champ-dataset",
                    "1.0.0",
                    "champ_dataset/dataset_files/v0.json",
                    72586598,
                    "72fa7727c8c3d4377d297b2cd171dc35ad86e2cfe9df2043131ba8a5389e5a71",
                    "champ",
                    champ_records,
                ),
                Reading(extras={"source": "champ"}),
            )
        },
    ),
}
