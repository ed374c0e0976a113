"""What an evaluation takes: problems × samples of long responses, from formulas, with each engine.

Decoding only: the few prompts, grading and loading are left out. A rank's responses take turns in as many places as its memory has room
for; a place whose response ends gets the next one at once. See `Evaluation` for what is assumed of lengths.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.table import Table

from megatron_atesd.model.counts import layer_parameters, vocabulary_parameters
from megatron_atesd.plan.hardware import Assumptions, Gpu
from megatron_atesd.plan.memory import adapter_bytes, kv_cache_bytes, stage_parameters
from megatron_atesd.plan.planned_update import PlannedUpdate

# Copies of the weights on a GPU: vLLM's stand beside the model that they are handed over from.
ENGINES = {"training": 1, "vllm": 2}


@dataclass(frozen=True)
class Evaluation:
    """A greedy response and K samples a problem, cut after `limit` tokens.

    share: of the limit, that a response has on average. It is assumed that the last responses of each rank reach the limit.
    """

    problems: int
    samples: int
    limit: int
    share: float

    @property
    def mean(self) -> float:
        """Tokens of a response."""
        return self.share * self.limit


@dataclass(frozen=True)
class PlannedEvaluation:
    """rows: responses in the making at once on one copy of the model (0: not one fits). cache: bytes of their keys and values on a GPU;
    memory: bytes at the fullest; both of the stage that has most. seconds: of the greedy responses and then of the samples."""

    engine: str
    tensor: int
    pipeline: int
    copies: int
    rows: int
    cache: float
    memory: float
    seconds: float
    bound: str


def plan_evaluations(work: PlannedUpdate, asked: Evaluation, gpu: Gpu, assume: Assumptions) -> list[PlannedEvaluation]:
    """For each engine, of the layout that is planned for training and of the tensor sizes within a node that leave no pipeline."""
    found = [plan_evaluation(layout, engine, asked, gpu, assume) for engine in ENGINES for layout in _layouts(work, assume)]
    return list(dict.fromkeys(found))


def _layouts(work: PlannedUpdate, assume: Assumptions) -> Iterator[PlannedUpdate]:
    yield work
    for tensor in range(1, min(assume.gpus_per_node, work.gpus) + 1):
        if all(whole % tensor == 0 for whole in (work.gpus, work.arch.heads, work.arch.query_groups, work.arch.ffn)):
            yield replace(work, tensor=tensor, pipeline=1, virtual=1, context=1)


def plan_evaluation(work: PlannedUpdate, engine: str, asked: Evaluation, gpu: Gpu, assume: Assumptions) -> PlannedEvaluation:
    """Memory and time with this engine in this layout."""
    copies, prompt = work.gpus // (work.tensor * work.pipeline), work.lengths.student
    stage = max((0, work.pipeline - 1), key=lambda stage: stage_parameters(work, stage))
    held = assume.overhead + ENGINES[engine] * stage_parameters(work, stage) * work.size + adapter_bytes(work)
    room = gpu.memory * (1 - assume.fragmentation) - held
    cache = kv_cache_bytes(work, 1, prompt, round(asked.mean))
    row = cache + 12.0 * work.arch.vocabulary  # and logits
    calls = [-(-asked.problems * each // copies) for each in (1, asked.samples)]
    rows = min(max(calls), int(room / row), work.rollout_batch or max(calls))
    if rows < 1 or room < kv_cache_bytes(work, 1, prompt, asked.limit):
        return PlannedEvaluation(engine, work.tensor, work.pipeline, copies, 0, 0.0, held + row, float("inf"), "memory")
    times = [_decoding(work, engine, asked, responses, min(rows, responses), gpu, assume) for responses in calls]
    memory = (held + rows * row) / (1 - assume.fragmentation)
    seconds = sum(max(parts.values()) for parts in times)
    bound = max(times[1], key=times[1].__getitem__)
    return PlannedEvaluation(engine, work.tensor, work.pipeline, copies, rows, rows * cache, memory, seconds, bound)


def steps(responses: int, rows: int, asked: Evaluation) -> float:
    """Steps in which a rank's responses are decoded: all places are busy, until the last to start runs to the limit."""
    return max(1.0, responses / rows) * asked.mean + asked.limit - asked.mean


def _decoding(
    work: PlannedUpdate, engine: str, asked: Evaluation, responses: int, rows: int, gpu: Gpu, assume: Assumptions
) -> dict[str, float]:
    """Seconds, if nothing else were to do, of reading weights and cache, of starting kernels, and of products; stages as in an update's
    rollout (speed.py)."""
    arch, count = work.arch, steps(responses, rows, asked)
    parameters = arch.layers * layer_parameters(arch, work.tensor) + vocabulary_parameters(arch, work.tensor)
    tokens = responses * asked.mean
    at_once = work.pipeline if work.virtual == 1 else 1
    context = work.lengths.student + asked.mean / 2
    cache = 2 * arch.query_groups * arch.head_size / work.tensor * work.size * arch.layers * context
    layer = (assume.launch if engine == "training" else assume.captured) + (2 * assume.hop if work.tensor > 1 else 0)
    return {
        "memory": (count * parameters * work.size + tokens * cache / at_once) / (gpu.bandwidth * assume.bandwidth),
        "kernel launches": count * arch.layers * layer,
        "products": 2 * tokens * parameters / at_once / (gpu.flops * assume.utilization),
    }


def evaluation_table(found: list[PlannedEvaluation], asked: Evaluation) -> Table:
    """One row an engine and layout."""
    title = f"evaluation: {asked.problems} problems, {asked.samples} samples and a greedy response each"
    columns = ("engine", "layout", "at once on a copy", "GiB of cache", "GiB", "hours", "bound by")
    table = Table(*columns, title=title, title_justify="left")
    for plan in found:
        layout = f"TP {plan.tensor} × PP {plan.pipeline}, copies: {plan.copies}"
        sizes = [f"{size / 2**30:.1f}" for size in (plan.cache, plan.memory)]
        fits = (f"{plan.rows}", *sizes, f"{plan.seconds / 3600:.2f}", plan.bound)
        table.add_row(plan.engine, layout, *(fits if plan.rows else ("0", "", f"> {sizes[1]}", "does not fit", "")))
    return table


def evaluation_lines(work: PlannedUpdate, asked: Evaluation, assume: Assumptions) -> list[str]:
    """What these numbers take for granted beside what those of an update do."""
    batch = f"engine.batch allows {work.rollout_batch} at once; --engine.batch 0 leaves it to the memory."
    return [
        *([batch] if work.rollout_batch else []),
        f"Assumed, not measured: a response has {asked.mean:,.0f} tokens on average ({asked.share:.0%} of {asked.limit:,}), the last of "
        "each rank reach the limit, the place of a finished one is taken at once, and the cache takes the mean length of each.",
        f"A layer of a decoding step takes {assume.launch:.3g} s at least with the training engine, {assume.captured:.3g} s with vLLM, "
        "whose steps are CUDA graphs and whose weights are a second copy. Prompts, loading and grading are left out.",
    ]


def evaluation_values(found: list[PlannedEvaluation], asked: Evaluation) -> dict[str, Any]:
    """JSON-ready; bytes and seconds, which are null where it does not fit."""
    plans = [asdict(plan) | ({} if plan.rows else {"seconds": None}) for plan in found]
    return {"asked": asdict(asked), "plans": plans}
