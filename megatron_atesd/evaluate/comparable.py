"""Whether finished evaluations may be compared, and what the reader of a comparison must know of them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from megatron_atesd.errors import DataError
from megatron_atesd.evaluate.finished import Finished

Arms = Mapping[str, Sequence[Finished]]
FEWEST_SEEDS = 3  # that tell how far seeds spread
_OWN = ("--model", "what is in --model", "lora.start", "--seed", "the problems in --data")  # what may or must differ, or is refused


def check_same_problems(arms: Arms) -> None:
    """Raise DataError that names an evaluation on other problems than the first one's, or one that is given twice."""
    first, *others = [run for runs in arms.values() for run in runs]
    for run in others:
        if run.ids != first.ids:
            raise DataError(f"{run.folder} and {first.folder} are on different problems: {_what_differs(run.ids, first.ids)}")
        texts = [one.settings.get("the problems in --data") for one in (run, first)]
        if None not in texts and texts[0] != texts[1]:
            raise DataError(f"{run.folder} and {first.folder} have problems of the same ids but other texts; evaluate both on one file")
    seen: dict[Any, Finished] = {}
    for run in (first, *others):
        made = [run.settings.get(name) for name in ("what is in --model", "--seed")]
        same = seen.setdefault(tuple(made) if None not in made else run.folder.resolve(), run)
        if same is not run and same.settings == run.settings:
            raise DataError(f"{run.folder} and {same.folder} are the same evaluation: of one model, with one seed; give each once")


def _what_differs(ids: Sequence[str], others: Sequence[str]) -> str:
    ours, theirs = set(ids), set(others)
    if ours == theirs:
        return "their order differs; evaluate both on one file"
    lacking, more = [i for i in others if i not in ours], [i for i in ids if i not in theirs]
    parts = [f"the first {what} {len(these)}, such as {these[0]!r}" for what, these in (("lacks", lacking), ("alone has", more)) if these]
    return f"{' and '.join(parts)}; evaluate both on one file"


def other_settings(arms: Arms) -> Iterator[str]:
    """What decided the responses of a run otherwise than those of the first one, a sentence a run."""
    first, *others = [(name, run) for name, runs in arms.items() for run in runs]
    for name, run in [first, *others]:
        if not run.settings:
            yield f"{run.folder} does not say how its responses were made; whether {name} is sampled as the others are cannot be checked"
    for name, run in others:
        there, here = first[1].settings, run.settings
        keys = [key for key in dict.fromkeys((*there, *here)) if key not in _OWN and there.get(key) != here.get(key)]
        if keys and there and here:
            told = ", ".join(f"{key} is {json.dumps(here.get(key))}, there {json.dumps(there.get(key))}" for key in keys)
            those = f"{run.folder} ({name}) was sampled otherwise than {first[1].folder} ({first[0]})"
            yield f"{those}: {told}; a difference may come from that"


def unjudged_seeds(arms: Arms) -> Iterator[str]:
    """A sentence where arms have too few runs."""
    few = [f"{name} ({len(runs)})" for name, runs in arms.items() if len(runs) < FEWEST_SEEDS]
    if few:
        yield (
            f"the spread over seeds cannot be judged with fewer than {FEWEST_SEEDS} runs of an arm: {', '.join(few)}; "
            "of these arms the very runs at hand are compared, and other seeds may differ by more"
        )


def one_model(arms: Arms) -> Iterator[str]:
    """A sentence for each arm whose runs differ in the seed of sampling alone."""
    for name, runs in arms.items():
        models = {run.settings.get("what is in --model") for run in runs}
        if len(runs) > 1 and len(models) == 1 and None not in models:
            yield f"the {len(runs)} runs of {name} are one model, sampled with several seeds: other training seeds are not counted in"
