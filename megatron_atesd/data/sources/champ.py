"""CHAMP: competition problems with the steps of an expert, as the package champ-dataset holds them."""

import json
from collections.abc import Iterator, Mapping
from typing import Any


def champ_records(content: bytes) -> Iterator[Mapping[str, Any]]:
    r"""A record a problem of `dataset_files/v0.json`: steps are lines of the solution, and the answer is boxed on a last one.

    Formulas are plain text (`x_(n+1)`), as the authors show them to models: their `_text` and `_answer`.
    """
    for entry in json.loads(content)["problems"].values():
        steps = [step["_text"] for step in entry["solution"]["steps"]]
        yield {
            "id": entry["identifier"],
            "problem": entry["_text"],
            "solution": "\n".join([*steps, f"\\boxed{{{entry['_answer']}}}"]),
            "answer": entry["_answer"],
            "category": entry["category"],
        }
