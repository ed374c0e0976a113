"""Seconds of an update by phase, from floating-point operations, bytes of memory and bytes between GPUs.

A multiply-add is two operations. Phases follow each other; within one, operations and messages are added, not overlapped.
"""

import math
from dataclasses import dataclass, replace

from megatron_atesd.model.counts import (
    ROW_PARALLEL,
    forward_flops,
    layer_parameters,
    loss_flops,
    matrix_flops,
    projections,
    vocabulary_parameters,
)
from megatron_atesd.plan.hardware import Assumptions, Gpu
from megatron_atesd.plan.memory import adapter_bytes, stage_adapters, trained_parameters
from megatron_atesd.plan.planned_update import PlannedUpdate, Scored


@dataclass(frozen=True)
class Phase:
    """Of the busiest rank: operations, bytes read or written in its memory, bytes it sends, seconds, and what binds them."""

    name: str
    flops: float
    memory: float
    sent: float
    seconds: float
    bound: str


def tensor_bytes(work: PlannedUpdate, tokens: float, passes: int) -> float:
    """Bytes that a rank sends in the TP collectives of a stage's layers: each gathers or scatters tokens · H · size · (T - 1) / T.

    passes: 4 in a forward pass (an all-reduce counts as a gather and a scatter); a backward pass has 4, and where all weights learn 2 more
    under sequence parallelism, which gathers the inputs again.
    """
    return passes * work.stage_layers * tokens * work.arch.hidden * work.size * (work.tensor - 1) / work.tensor


def context_bytes(work: PlannedUpdate, tokens: float, passes: float) -> float:
    """Bytes of keys and values that a rank sends to the other context ranks: 2 · K / T · size a token and layer, less its own part.

    tokens: of all ranks together. passes: 1 in a forward pass; a backward pass has 2, for it sends the gradients as well, or 1 where
    keys and values were gathered and kept.
    """
    width = 2 * work.arch.query_groups * work.arch.head_size / work.tensor
    return passes * work.stage_layers * tokens * width * work.size * (work.context - 1) / work.context


def bubble(work: PlannedUpdate, micro_batches: int) -> float:
    """By how much a pipeline is slower than its busiest stage: 1 + (PP - 1) / (VP · micro-batches)."""
    return 1 + (work.pipeline - 1) / (work.virtual * micro_batches)


def utilization(assume: Assumptions, tokens: float) -> float:
    """Share of the GPU's operations a second that products over so many tokens reach."""
    return assume.utilization * tokens / (tokens + assume.half_tokens)


def update_phases(work: PlannedUpdate, gpu: Gpu, assume: Assumptions) -> list[Phase]:
    """The phases of an update, in their order."""
    return [
        _decode(work, gpu, assume),
        _layers("teacher forward", "teacher", work, gpu, assume, work.lengths.teacher, 1, 4),
        *([_second_reading(work, gpu, assume)] if work.second_prompt else []),
        _layers("student forward and backward", "student", work, gpu, assume, work.lengths.student, *_student_passes(work)),
        _loss(work, gpu, assume),
        _gradients(work, gpu, assume),
        _optimizer(work, gpu, assume),
        _probe(work, gpu, assume),
        *([_exposure(work, gpu, assume)] if work.compared else []),
    ]


def sorting_seconds(work: PlannedUpdate, gpu: Gpu, assume: Assumptions) -> float:
    """Once, before the first update: what difficulty bins take of the start model. References are read as a probe reads them, responses
    are sampled as many at a time as in an update's rollout."""
    scored = (Scored("student", "reference", 1),)
    reading = replace(work, probe=work.references, probe_every=1, probe_answers=0, scored=scored)
    seconds = _probe(reading, gpu, assume).seconds if work.references else 0.0
    return seconds + work.answers / work.batch * _decode(work, gpu, assume).seconds


def _second_reading(work: PlannedUpdate, gpu: Gpu, assume: Assumptions) -> Phase:
    """The teacher's other pass, for a target that is a mix."""
    return _layers("teacher's second reading", "teacher", work, gpu, assume, work.second_prompt, 1, 4)


def _student_passes(work: PlannedUpdate) -> tuple[float, int]:
    """(forward passes' worth of operations, TP collectives a layer): forward, twice that backward, and what is computed again.

    Frozen matrices need one of the two (see `_layer_flops`), and no input again.
    """
    share = work.recompute.layers * work.virtual / work.stage_layers
    return 3 + share, round(8 + 2 * (work.sequence and not work.adapters) + 4 * share)


def _layer_flops(work: PlannedUpdate, passes: float, length: int) -> float:
    """Operations of so many forward passes' worth over one sequence, on all ranks of a model; frozen matrices have no gradient."""
    frozen = work.adapters is not None and passes > 1
    return passes * forward_flops(work.arch, length) - (matrix_flops(work.arch, length) if frozen else 0)


def adapter_work(work: PlannedUpdate, role: str, tokens: float, passes: float) -> tuple[float, float]:
    """(operations, bytes read or written) of the adapters of a rank's layers over its tokens; passes as in `_student_passes`. Nothing in a
    pass of the base.

    Products are thin: A reads its input, and about 8 times an entry of B's outputs is read or written forward (B, the scale, the layout as
    the fused product's, the sum with it), and as much backward.
    """
    a = work.adapters
    if a is None or (role == "teacher" and work.teacher_is_base):
        return 0.0, 0.0
    entries = 0.0
    for name in a.targets:
        inputs, outputs = projections(work.arch)[name]
        row = name in ROW_PARALLEL
        entries += inputs / (work.tensor if row else 1) + 8 * outputs / (1 if row else work.tensor)
    there_and_back = passes - (passes > 1)
    return passes * tokens * 2 * stage_adapters(work), there_and_back * tokens * work.stage_layers * entries * a.size


def layer_speed(work: PlannedUpdate, role: str, gpu: Gpu, assume: Assumptions) -> float:
    """Operations a second of the layers of a pass, if these could be all that it does at full utilization."""
    return gpu.flops * (assume.fp8 if role in work.fp8 else 1)


def _layers(
    name: str, role: str, work: PlannedUpdate, gpu: Gpu, assume: Assumptions, prompt: int, passes: float, collectives: int
) -> Phase:
    micro_batches, tokens = work.micro_batches(prompt)
    length = prompt + work.lengths.response
    mine = work.sequences * length / work.context  # tokens
    flops = work.sequences * _layer_flops(work, passes, length) / (work.tensor * work.pipeline * work.context)
    more, memory = adapter_work(work, role, mine, passes)
    tensor, keys = tensor_bytes(work, mine, collectives), context_bytes(work, work.sequences * length, passes)
    # once forward, and once backward when there is a backward
    pipeline = (1 + (passes > 1)) * mine * work.arch.hidden * work.size / work.split_hidden * (work.pipeline > 1)
    products = flops / layer_speed(work, role, gpu, assume) + more / gpu.flops
    computing = products / utilization(assume, tokens / work.context) + memory / (gpu.bandwidth * assume.bandwidth)
    near, next_to, all_ranks = (_link(gpu, assume, ranks) for ranks in (work.tensor, work.tensor * work.context, work.gpus))
    sending = (tensor / near + keys / next_to + pipeline / all_ranks) / assume.link
    seconds = (computing + sending) * bubble(work, micro_batches)
    bound = "products" if computing >= sending else "messages"
    return Phase(
        name, flops + more, memory, tensor + keys + pipeline, seconds, bound if bubble(work, micro_batches) < 2 else "pipeline bubble"
    )


def _link(gpu: Gpu, assume: Assumptions, ranks: int) -> float:
    """Bytes a second between so many neighbouring ranks."""
    return gpu.nvlink if ranks <= assume.gpus_per_node else gpu.network


def _decode(work: PlannedUpdate, gpu: Gpu, assume: Assumptions) -> Phase:
    """Each step reads the weights and the KV cache of half a response on average, after one pass over the prompts.

    As many groups of rows are on their way as there are stages: each stage reads its weights for each of them, so that a step of all rows
    takes as long as all stages in turn, but its share of the cache while others read theirs. Adapters are read beside the weights.
    """
    arch, lengths, rows = work.arch, work.lengths, work.generated_at_once
    batches = -(-work.responses // rows)
    steps = batches * lengths.response
    layers, head = arch.layers * layer_parameters(arch, work.tensor), vocabulary_parameters(arch, work.tensor)
    weights = layers * (1 if "rollout" in work.fp8 else work.size) + head * work.size + adapter_bytes(work) * work.pipeline
    context = lengths.student + lengths.response / 2
    cache = 2 * arch.query_groups * arch.head_size / work.tensor * work.size * arch.layers * rows * context
    products = work.responses * forward_flops(arch, lengths.student) / work.tensor
    flops = (products + steps * rows * 2 * (layers + head)) / work.pipeline
    at_once = work.pipeline if work.virtual == 1 else 1
    reading = steps * (weights + cache / at_once) / (gpu.bandwidth * assume.bandwidth)
    waiting = steps * arch.layers * (assume.launch + (assume.adapters if work.adapters else 0) + (2 * assume.hop if work.tensor > 1 else 0))
    prompts = products / (layer_speed(work, "rollout", gpu, assume) * utilization(assume, rows * lengths.student))
    bound = "kernel launches" if waiting > reading else "memory"
    sent = tensor_bytes(work, work.responses * (lengths.student + lengths.response), 4)
    return Phase("rollout", flops, steps * (weights + cache) / work.pipeline, sent, max(reading, waiting) + prompts, bound)


def _loss(work: PlannedUpdate, gpu: Gpu, assume: Assumptions) -> Phase:
    """On the last stage: four products, three beside a frozen head, and elementwise work that reads and writes about 80 bytes an entry of
    the logits.

    To mix the probabilities of two readings takes one product more, and about 60 bytes: two log-sums, two shifts and their log-sum.
    """
    tokens, more = work.sequences * work.lengths.response / work.context, work.readings - 1
    flops = loss_flops(work.arch, tokens) * (4 - (work.adapters is not None) + more) / 4 / work.tensor
    memory = (80.0 + 60.0 * more) * tokens * work.arch.vocabulary / work.tensor
    computing, moving = flops / (gpu.flops * assume.utilization), memory / (gpu.bandwidth * assume.bandwidth)
    sent = 2 * tokens * work.arch.hidden * 4 * (work.tensor - 1) / work.tensor
    seconds = computing + moving + sent / (_link(gpu, assume, work.tensor) * assume.link)
    return Phase("loss", flops, memory, sent, seconds, "products" if computing > moving else "memory")


def _busiest(work: PlannedUpdate) -> int:
    return max(trained_parameters(work, stage) for stage in (0, work.pipeline - 1))


def _gradients(work: PlannedUpdate, gpu: Gpu, assume: Assumptions) -> Phase:
    """fp32 gradients of what learns over D data and context ranks: all-reduce sends 2·(D - 1) / D of them; the distributed optimizer's
    scatter half of that, and its gather the weights."""
    share, parameters = (work.replicas - 1) / work.replicas, _busiest(work)
    sent = parameters * share * ((4 + work.trained_size) if work.distributed else 8)
    link = _link(gpu, assume, work.tensor * work.replicas)
    return Phase("gradients over data ranks", 0.0, 0.0, sent, sent / (link * assume.link), "messages")


def _optimizer(work: PlannedUpdate, gpu: Gpu, assume: Assumptions) -> Phase:
    """Norms read the gradients twice; Adam reads gradient, master weight and moments and writes the latter and the weight."""
    each = 2 * 4 + 4 + 2 * (4 + 8) + work.trained_size
    memory = _busiest(work) * each / (work.replicas if work.distributed else 1)
    return Phase("optimizer", 0.0, float(memory), 0.0, memory / (gpu.bandwidth * assume.bandwidth), "memory")


def _exposure(work: PlannedUpdate, gpu: Gpu, assume: Assumptions) -> Phase:
    """An update's share of a choice by alignment, made once a hold window on its first update's responses.

    A pass with gradients over the progress texts, the gradients' way over the data ranks, the trial step and back, and on a share of the
    responses two passes of the student, one of the teacher for each exposure and, in both of the student's, the forward half of its loss.
    What a mixed target reads besides is read once.
    """
    read = replace(work, batch=math.ceil(work.sequences * work.score_share) * work.data)
    texts = replace(work, batch=work.texts) if work.texts else work
    parts = [
        (_layers("progress", "student", texts, gpu, assume, work.lengths.student, *_student_passes(texts)), 1.0),
        (_gradients(work, gpu, assume), 1.0),
        (_optimizer(work, gpu, assume), 2.0),
        (_layers("student", "student", read, gpu, assume, work.lengths.student, 1, 4), 2.0),
        (_layers("teacher", "teacher", read, gpu, assume, work.lengths.teacher, 1, 4), work.compared),
        (_loss(read, gpu, assume), work.compared),
        *([(_second_reading(read, gpu, assume), 1.0)] if work.second_prompt else []),
    ]
    flops, memory, sent, seconds = (
        sum(times * getattr(part, what) for part, times in parts) / work.hold for what in ("flops", "memory", "sent", "seconds")
    )
    return Phase("exposure", flops, memory, sent, seconds, max(parts, key=lambda part: part[1] * part[0].seconds)[0].bound)


def _probe(work: PlannedUpdate, gpu: Gpu, assume: Assumptions) -> Phase:
    """An update's share of a measurement: texts scored after the student's prompt or the teacher's, and what the probe problems answer.

    A reference is as long as what the teacher's prompt has beyond the student's. The controller itself takes milliseconds, on rank 0.
    """
    arch, lengths, mine = work.arch, work.lengths, -(-work.probe // work.data)
    prompt = {"student": lengths.student, "teacher": lengths.teacher}
    text = {"reference": max(1, lengths.teacher - lengths.student), "response": lengths.response}
    passes = [(scored.role, mine * scored.count, prompt[scored.role] + text[scored.text], text[scored.text]) for scored in work.scored]
    model_ranks = work.tensor * work.pipeline * work.context
    layers = [(role, count * forward_flops(arch, length) / model_ranks) for role, count, length, _ in passes]
    head = sum(count * loss_flops(arch, tokens) / 4 for _, count, _, tokens in passes) / (work.tensor * work.context)
    tokens = sum(count * length for _, count, length, _ in passes)
    tensor, keys = tensor_bytes(work, tokens / work.context, 4), context_bytes(work, tokens, 1)
    adapted = [adapter_work(work, role, count * length / work.context, 1) for role, count, length, _ in passes]
    more, moving = (sum(amounts) for amounts in zip(*adapted, strict=True))
    at_once = sum(flops / layer_speed(work, role, gpu, assume) for role, flops in layers) + (head + more) / gpu.flops
    computing = at_once / utilization(assume, work.micro_batch_tokens / work.context) + moving / (gpu.bandwidth * assume.bandwidth)
    sending = (tensor / _link(gpu, assume, work.tensor) + keys / _link(gpu, assume, work.tensor * work.context)) / assume.link
    micro_batches = max(1, tokens // (len(passes) * work.micro_batch_tokens))
    seconds = (computing + sending) * bubble(work, micro_batches)
    flops, bound = sum(flops for _, flops in layers) + head + more, "products" if computing >= sending else "messages"
    every = work.probe_every
    if not work.probe_answers:
        return Phase("probe", flops / every, moving / every, (tensor + keys) / every, seconds / every, bound)
    answers = _decode(replace(work, batch=work.probe * work.probe_answers, rollout_batch=work.generated_at_once), gpu, assume)
    sent = tensor + keys + answers.sent
    return Phase(
        "probe",
        (flops + answers.flops) / every,
        (moving + answers.memory) / every,
        sent / every,
        (seconds + answers.seconds) / every,
        "memory",
    )
