"""Named ways to evaluate: what a protocol fixes, and where an evaluation deviates from it.

`opsd_v3` is the one of the papers' tables on AIME and HMMT (arXiv 2601.18734 in its third version, and 2605.11458). Its seed is free.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from megatron_atesd.config import RolloutConfig

Values = Mapping[str, Any]

PROTOCOLS: dict[str, Values] = {
    "opsd_v3": {
        "samples": 12,
        "thinking": True,
        "temperature": 1.0,
        "top_p": 0.95,
        "top_k": 0,
        "min_p": 0.0,
        "max_new_tokens": 38912,
        "min_new_tokens": 0,
        "stop": [],
    },
}


def protocol_record(name: str | None, samples: int, thinking: bool, rollout: RolloutConfig) -> dict[str, Any] | None:
    """{"name": …, "deviations": {value: [the protocol's, this evaluation's]}}, JSON-ready; None without a protocol."""
    if name is None:
        return None
    here = {"samples": samples, "thinking": thinking, **asdict(rollout)}
    return {
        "name": name,
        "deviations": {value: [wanted, here[value]] for value, wanted in PROTOCOLS[name].items() if here[value] != wanted},
    }


def protocol_text(record: Mapping[str, Any] | None) -> str:
    """The record as a sentence."""
    if record is None:
        return "no protocol was named"
    deviations = [f"{name.replace('_', ' ')} {here}, not {wanted}" for name, (wanted, here) in record["deviations"].items()]
    return f"protocol {record['name']}, " + (f"but {'; '.join(deviations)}" if deviations else "without deviation")
