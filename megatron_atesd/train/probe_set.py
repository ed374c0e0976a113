"""Probe problems and what is measured on them: all of them, or those of a difficulty bin."""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_atesd.records import Problem
from megatron_atesd.train.own_responses import OwnResponses
from megatron_atesd.train.progress import ProgressSignal, ReferenceNLL


@dataclass(frozen=True)
class ProbeSet:
    """own: the start model's responses to these problems. progress: the configured signal, of these problems (or of an update's)."""

    problems: Sequence[Problem]
    own: OwnResponses
    references: ReferenceNLL
    progress: ProgressSignal
