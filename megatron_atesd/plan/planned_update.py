"""What is planned: a model, how it is divided, and the tokens of an update."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from megatron_atesd.config import DataConfig, TrainConfig, fp8_recipe
from megatron_atesd.config.signals import probe_interval
from megatron_atesd.data.problems import load_problems
from megatron_atesd.errors import ConfigError
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.train.own_responses import KEPT

_SIZES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class Lengths:
    """Tokens of a student's prompt, of a teacher's and of a response: one length for all sequences of a plan."""

    student: int
    teacher: int
    response: int

    @classmethod
    def of(cls, config: TrainConfig, student: int | None = None, teacher: int | None = None, response: int | None = None) -> "Lengths":
        """What is not given is assumed: prompts of 256 tokens, teacher's half of prompt.max_length, responses as long as allowed."""
        longest = config.prompt.max_length
        return cls(student or min(256, longest), teacher or max(min(256, longest), longest // 2), response or config.rollout.max_new_tokens)


@dataclass(frozen=True)
class Recompute:
    """Layers that are computed again in the backward pass, of those of a chunk: in blocks of `block`; 0 = none."""

    layers: int = 0
    block: int = 1


@dataclass(frozen=True)
class PlannedAdapters:
    """LoRA's adapters, which learn instead of all weights.

    size: bytes of an entry. dropout: whether their inputs have one. new: they change nothing at the start, so that a teacher initial is
    the base itself. The other names are the settings'.
    """

    rank: int
    targets: tuple[str, ...]
    size: int
    dropout: bool = False
    new: bool = True


@dataclass(frozen=True)
class Scored:
    """Texts of each probe problem that one forward pass scores after the role's prompt: as long as references, or as responses."""

    role: Literal["student", "teacher"]
    text: Literal["reference", "response"]
    count: int


@dataclass(frozen=True)
class PlannedUpdate:
    """One update of a run on `gpus` processes.

    size: bytes of a parameter. ring: keys and values go round context-parallel ranks, as in Transformer Engine, instead of being gathered
    on each. probe: problems that are measured every probe_every updates; scored: what is scored of each of them then; probe_answers:
    responses that each gets then. compared: exposures that mode aligned scores once in `hold` updates (0: another mode), on `score_share`
    of the responses, with the gradient of `texts` texts (0: of the update's responses). fp8: the passes in FP8, by their names in section
    precision. target: distill.target. references, answers: that the start model reads, or gives, once before the first update to sort
    problems into difficulty bins (at most, where data.train is not there). adapters: None where all weights learn. The other
    names are the settings'.
    """

    arch: Architecture
    gpus: int
    tensor: int
    pipeline: int
    virtual: int
    sequence: bool
    context: int
    ring: bool
    size: int
    micro_batch_tokens: int
    batch: int
    rollout_batch: int
    chunk: int
    teacher: str
    offload: bool
    distributed: bool
    recompute: Recompute
    probe: int
    probe_every: int
    scored: tuple[Scored, ...]
    probe_answers: int
    compared: int
    score_share: float
    hold: int
    texts: int
    lengths: Lengths
    fp8: tuple[str, ...] = ()
    target: str = "teacher"
    references: int = 0
    answers: int = 0
    adapters: PlannedAdapters | None = None

    @property
    def data(self) -> int:
        """Data-parallel ranks."""
        return self.gpus // (self.tensor * self.pipeline * self.context)

    @property
    def trained_size(self) -> int:
        """Bytes of a parameter that learns."""
        return self.size if self.adapters is None else self.adapters.size

    @property
    def teacher_is_base(self) -> bool:
        """Whether the teacher has no weights of its own and no adapters: the frozen base."""
        return self.adapters is not None and self.adapters.new and self.teacher == "initial"

    @property
    def sequences(self) -> int:
        """Of a data-parallel rank, in an update."""
        return -(-self.batch // self.data)

    @property
    def second_prompt(self) -> int:
        """Tokens of the prompt after which the teacher reads each response again, for a target that is a mix; 0 for no mix."""
        return {"teacher": 0, "mix_exposures": self.lengths.teacher, "mix_unaided": self.lengths.student}[self.target]

    @property
    def readings(self) -> int:
        """Of a response by the teacher, whose logits the loss forms."""
        return 2 if self.target == "mix_exposures" else 1

    @property
    def stage_layers(self) -> int:
        return self.arch.layers // self.pipeline

    @property
    def replicas(self) -> int:
        """Ranks that hold the same weights and add their gradients."""
        return self.data * self.context

    @property
    def responses(self) -> int:
        """That one rank generates in an update: context-parallel ranks share them out."""
        return -(-self.sequences // self.context)

    @property
    def generated_at_once(self) -> int:
        return min(self.responses, self.rollout_batch or self.responses)

    @property
    def split_hidden(self) -> int:
        """By how much a rank's part of the residual stream is smaller than the whole."""
        return self.tensor if self.sequence else 1

    def micro_batches(self, prompt: int) -> tuple[int, int]:
        """(micro-batches, tokens of the largest) of an update's sequences with this prompt, all equally long."""
        length = prompt + self.lengths.response
        together = max(1, min(self.sequences, self.micro_batch_tokens // length))
        return math.ceil(self.sequences / together), together * length

    def fullest(self, prompt: int) -> int:
        """Tokens of the largest micro-batch when lengths differ: the budget, unless one sequence is longer or all together are shorter."""
        length = prompt + self.lengths.response
        return max(length, min(self.micro_batch_tokens, self.sequences * length))


def planned_update(config: TrainConfig, arch: Architecture, gpus: int, lengths: Lengths) -> PlannedUpdate:
    """The update that a configuration describes; its layout must have passed the rules of `config`.

    Raises ConfigError when all problems of data.probe are to be counted and the file is not there, DataError when a line is wrong.
    """
    parallel, chunk_layers = config.parallel, arch.layers // (config.parallel.pipeline * config.parallel.virtual_pipeline)
    return PlannedUpdate(
        arch=arch,
        gpus=gpus,
        tensor=parallel.tensor,
        pipeline=parallel.pipeline,
        virtual=parallel.virtual_pipeline,
        sequence=parallel.sequence,
        context=parallel.context,
        ring=config.model.attention != "sdpa",
        size=_SIZES[config.model.dtype],
        micro_batch_tokens=parallel.micro_batch_tokens,
        batch=config.data.batch,
        rollout_batch=config.engine.batch,
        chunk=config.distill.chunk,
        teacher=config.distill.teacher,
        offload=config.distill.teacher_offload,
        distributed=bool(config.optimizer.get("use_distributed_optimizer", False)),
        recompute=_recompute(config, chunk_layers),
        probe=_probe_problems(config.data),
        probe_every=probe_interval(config.exposure),
        scored=tuple(_scored(config)),
        probe_answers=int(config.exposure.progress == "probe_accuracy"),
        compared=config.exposure.grid if config.exposure.mode == "aligned" else 0,
        score_share=config.exposure.score_share,
        hold=config.exposure.hold,
        texts=_progress_texts(config),
        lengths=lengths,
        fp8=tuple(role for role, precision in asdict(config.precision).items() if fp8_recipe(precision)),
        target=config.distill.target,
        references=_sorted_problems(config, "nll", 1, 1),
        answers=_sorted_problems(config, "pass_rate", config.exposure.difficulty_samples, config.exposure.probe_samples),
        adapters=_adapters(config),
    )


def _adapters(config: TrainConfig) -> PlannedAdapters | None:
    lora = config.lora
    if not lora.rank:
        return None
    size = _SIZES[lora.dtype or config.model.dtype]
    return PlannedAdapters(lora.rank, tuple(lora.targets), size, lora.dropout > 0, not lora.start)


def _scored(config: TrainConfig) -> Iterator[Scored]:
    """The references' NLL, the progress signal and the grounding; of own responses as many as may be kept."""
    exposure, target = config.exposure, config.distill.target
    yield Scored("student", "reference", 1)
    if exposure.progress in ("probe_own", "probe_margin"):
        yield Scored("student", "response", KEPT * (1 + (exposure.progress == "probe_margin")))
    if exposure.progress == "probe_kl":
        yield from (
            Scored("teacher", "response", 1 + (target == "mix_exposures")),
            Scored("student", "response", 1 + (target == "mix_unaided")),
        )
    if exposure.mode == "learned" and exposure.grounding != "off":
        yield Scored("teacher", "response", KEPT) if exposure.grounding == "own" else Scored("teacher", "reference", 1)


def _progress_texts(config: TrainConfig) -> int:
    """Texts whose gradient mode aligned follows; 0 for the update's own responses."""
    a_problem = {"probe_nll": 1, "probe_own": KEPT, "probe_margin": 2 * KEPT}.get(config.exposure.progress, 0)
    return a_problem * _probe_problems(config.data) if config.exposure.mode == "aligned" else 0


def _sorted_problems(config: TrainConfig, difficulty: str, of_training: int, of_probe: int) -> int:
    """So many of each training problem in use and of each probe problem, where bins are made by `difficulty`."""
    exposure, data = config.exposure, config.data
    if exposure.bins == 1 or exposure.difficulty != difficulty:
        return 0
    used = config.run.updates * data.batch
    used = min(used, len(load_problems(data.train, data.on_error))) if Path(data.train).is_file() else used
    return of_training * used + of_probe * _probe_problems(data)


def _probe_problems(data: DataConfig) -> int:
    """As training takes them; the file is only read where its length matters."""
    if data.probe_size:
        return data.probe_size
    if not Path(data.probe).is_file():
        raise ConfigError(
            f"data.probe_size is 0, which takes all problems of data.probe, but {data.probe!r} is no file; "
            "write the file first, or set data.probe_size to their number to plan"
        )
    return len(load_problems(data.probe, data.on_error))


def _recompute(config: TrainConfig, chunk_layers: int) -> Recompute:
    """Only whole layers count: selective recompute of attention saves nothing, whose scores are never kept here."""
    if config.megatron.get("recompute_granularity") != "full":
        return Recompute()
    number = config.megatron.get("recompute_num_layers") or 1
    return Recompute(chunk_layers, number) if config.megatron.get("recompute_method") == "uniform" else Recompute(number, 1)
