"""What one measurement of rollouts is asked for: a model, prompts, and who generates."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.rollout_model import MARKS, marked_prompt
from benchmarks.workload import Workload
from megatron_atesd.config import RolloutConfig

SHORTEST, LONGEST = 16, 512  # tokens of a response, where lengths are mixed


@dataclass(frozen=True)
class RolloutTask:
    """One measurement in processes of its own.

    batch: responses in the making at once. lengths: equal or mixed. engine: training, vllm or transformers. tensor: processes that the
    model is divided among. model: the folder of its weights and tokenizer.
    """

    workload: Workload
    batch: int
    lengths: str
    engine: str
    tensor: int
    dtype: str
    device: str
    threads: int
    model: str
    prompts: Sequence[Sequence[int]]
    max_new_tokens: int

    @property
    def name(self) -> str:
        """The measurement in words."""
        divided = f" TP {self.tensor}" if self.tensor > 1 else ""
        return f"{self.workload.name}, batch {self.batch}, {self.lengths} lengths, {self.engine}{divided}"

    @property
    def sampling(self) -> RolloutConfig:
        """The settings' defaults."""
        return RolloutConfig(max_new_tokens=self.max_new_tokens)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @staticmethod
    def load(path: Path) -> "RolloutTask":
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return RolloutTask(**{**values, "workload": Workload(**values["workload"])})


def draw_prompts(workload: Workload, batch: int, lengths: str, seed: int) -> tuple[list[list[int]], int]:
    """Prompts and max_new_tokens.

    equal: `batch` prompts of prompt_tokens, each with a response of response_tokens. mixed: a queue of 4 (of large batches 2) times as
    many, of half to all of prompt_tokens, with responses of SHORTEST … LONGEST.
    """
    draw = Random(seed)
    if lengths == "equal":
        limit, sizes = workload.response_tokens, [workload.prompt_tokens] * batch
        responses = [limit + 1] * batch  # cut one token before their stop token
    else:
        limit, count = LONGEST, batch * (4 if batch <= 32 else 2)
        sizes = [draw.randint(max(MARKS, workload.prompt_tokens // 2), workload.prompt_tokens) for _ in range(count)]
        responses = spread_lengths(count, SHORTEST, LONGEST, draw)
    return [marked_prompt(size, response, workload.vocabulary, draw) for size, response in zip(sizes, responses, strict=True)], limit


def spread_lengths(count: int, shortest: int, longest: int, draw: Random) -> list[int]:
    """`count` lengths, evenly spread from `shortest` to `longest`, in random order."""
    lengths = [round(shortest + (longest - shortest) * i / max(1, count - 1)) for i in range(count)]
    draw.shuffle(lengths)
    return lengths
