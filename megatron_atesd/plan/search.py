"""The layout that is predicted to be fastest among those that fit."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from megatron_atesd.plan.hardware import Assumptions, Gpu
from megatron_atesd.plan.memory import RankMemory, rank_memory
from megatron_atesd.plan.planned_update import PlannedUpdate, Recompute
from megatron_atesd.plan.speed import Phase, update_phases

TOKENS = (2048, 4096, 8192, 16384, 32768, 65536)
MARGIN = 0.05  # predicted times cannot tell less
SHARD, OFFLOAD = "optimizer.use_distributed_optimizer true", "distill.teacher_offload true"
RECOMPUTE = "megatron.recompute_granularity full, recompute_method uniform, recompute_num_layers 1"


@dataclass(frozen=True)
class Plan:
    """A workload with its prediction: memory of the first, a middle and the last pipeline stage, seconds of the phases of an update."""

    work: PlannedUpdate
    memory: list[RankMemory]
    phases: list[Phase]

    @property
    def peak(self) -> float:
        return max(rank.peak for rank in self.memory)

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)

    @property
    def tokens_per_second(self) -> float:
        """Response tokens of an update over its seconds, all GPUs together."""
        return self.work.batch * self.work.lengths.response / self.seconds


def make_plan(work: PlannedUpdate, gpu: Gpu, assume: Assumptions) -> Plan:
    """Memory and time of this workload."""
    stages = sorted({0, min(1, work.pipeline - 1), work.pipeline - 1})
    memory = [rank_memory(work, stage, assume.overhead, assume.fragmentation) for stage in stages]
    return Plan(work, memory, update_phases(work, gpu, assume))


def layouts(work: PlannedUpdate, assume: Assumptions) -> Iterator[PlannedUpdate]:
    """Every TP (within a node) × PP × DP and token budget that the model's shape and the batch allow, as configured otherwise.

    Sequence parallelism goes with TP; a pipeline is not interleaved; CP stays.
    """
    arch = work.arch
    for tensor in _divisors(math.gcd(arch.heads, arch.query_groups, arch.ffn)):
        for pipeline in _divisors(arch.layers):
            model = tensor * pipeline * work.context
            if tensor > assume.gpus_per_node or work.gpus % model or work.batch % (work.gpus // model):
                continue
            for tokens in TOKENS:
                layout = replace(work, tensor=tensor, pipeline=pipeline, virtual=1, sequence=tensor > 1, micro_batch_tokens=tokens)
                if recomputed := min(work.recompute.layers * work.virtual * work.pipeline, arch.layers) // pipeline:
                    layout = replace(layout, recompute=replace(work.recompute, layers=recomputed))
                yield layout


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def best_plan(work: PlannedUpdate, gpu: Gpu, assume: Assumptions) -> Plan | None:
    """Of the plans that fit, and are within MARGIN of the fastest, that with most memory to spare; None when nothing fits."""
    plans = (make_plan(layout, gpu, assume) for layout in layouts(work, assume))
    fitting = [plan for plan in plans if plan.peak <= gpu.memory]
    enough = (1 + MARGIN) * min((plan.seconds for plan in fitting), default=0.0)
    return min((plan for plan in fitting if plan.seconds <= enough), key=lambda plan: plan.peak, default=None)


def ways_out(work: PlannedUpdate, gpu: Gpu, assume: Assumptions) -> list[tuple[str, Plan]]:
    """What would do where no layout fits, with its best plan: all memory settings together, and the fewest GPUs of twice, four times …"""
    names, together = f"{SHARD}, {OFFLOAD} and {RECOMPUTE}", replace(work, distributed=True, offload=True, recompute=_every_layer(work))
    if work.adapters:  # whose optimizer state and teacher are small
        names, together = RECOMPUTE, replace(work, recompute=_every_layer(work))
    wider = (replace(work, gpus=work.gpus * 2**doublings) for doublings in range(1, 11))
    found = [(names, best_plan(together, gpu, assume))]
    enough = next(((more.gpus, plan) for more in wider if (plan := best_plan(more, gpu, assume))), None)
    found += [(f"{enough[0]} GPUs", enough[1])] if enough else []
    return [(name, plan) for name, plan in found if plan]


def _every_layer(work: PlannedUpdate) -> Recompute:
    return Recompute(work.stage_layers // work.virtual, 1)


def remedies(work: PlannedUpdate, gpu: Gpu, assume: Assumptions) -> list[str]:
    """Single changes that make the workload fit, each with the peak in GiB that it leads to; the smallest peak first.

    Those that do not suffice alone are left out; the list is empty when none does.
    """
    changes = {
        SHARD: replace(work, distributed=True),
        OFFLOAD: replace(work, offload=True),
        RECOMPUTE: replace(work, recompute=_every_layer(work)),
        f"parallel.micro_batch_tokens {work.micro_batch_tokens // 2}": replace(work, micro_batch_tokens=work.micro_batch_tokens // 2),
        f"engine.batch {max(1, work.generated_at_once // 2)}": replace(work, rollout_batch=max(1, work.generated_at_once // 2)),
        f"distill.chunk {max(1, work.chunk // 2)}": replace(work, chunk=max(1, work.chunk // 2)),
    }
    peaks = {name: make_plan(changed, gpu, assume).peak for name, changed in changes.items()}
    return [f"{name} ({peak / 2**30:.1f} GiB)" for name, peak in sorted(peaks.items(), key=lambda item: item[1]) if peak <= gpu.memory]
