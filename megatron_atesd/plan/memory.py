"""Bytes that one rank of each pipeline stage holds, as formulas. Weights and optimizer state equal what megatron.core allocates.

Letters: H hidden, F feed-forward, Q and K widths of all queries and of all keys, V vocabulary with its padding, T tensor-parallel size,
r rank of adapters.
"""

from dataclasses import dataclass

from megatron_atesd.model.counts import ROW_PARALLEL, layer_adapters, layer_parameters, projections, vocabulary_parameters
from megatron_atesd.model.lora_layers import PROJECTIONS
from megatron_atesd.plan.planned_update import PlannedUpdate
from megatron_atesd.rollout.engine import PROMPT_TOKENS

_MASTER, _MOMENTS, _GRADIENT = 4, 8, 4


@dataclass(frozen=True)
class RankMemory:
    """Bytes of a rank. `always`: from start to end. `phases`: what a phase adds; one at a time."""

    stage: int
    always: dict[str, float]
    phases: dict[str, dict[str, float]]

    @property
    def peak(self) -> float:
        return sum(self.always.values()) + max(sum(phase.values()) for phase in self.phases.values())

    @property
    def fullest(self) -> str:
        """The phase with the peak."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))


def stage_parameters(work: PlannedUpdate, stage: int) -> int:
    """Parameters of the model on one rank: its layers, the embedding on the first stage, final norm and head on the last.

    A tied head is the embedding where both are on one stage; otherwise the last stage has its own copy of it.
    """
    first, last = stage == 0, stage == work.pipeline - 1
    vocabulary = first + last - (first and last and work.arch.tied)
    layers = work.stage_layers * layer_parameters(work.arch, work.tensor)
    return layers + vocabulary * vocabulary_parameters(work.arch, work.tensor) + last * work.arch.hidden


def stage_adapters(work: PlannedUpdate) -> int:
    """Parameters of the adapters of one rank, of any stage; 0 without LoRA."""
    a = work.adapters
    return work.stage_layers * layer_adapters(work.arch, a.targets, a.rank, work.tensor) if a else 0


def trained_parameters(work: PlannedUpdate, stage: int) -> int:
    """Of one rank: what learns."""
    return stage_adapters(work) if work.adapters else stage_parameters(work, stage)


def adapter_bytes(work: PlannedUpdate) -> float:
    """Of the adapters' weights on one rank."""
    return float(stage_adapters(work) * work.trained_size)


def optimizer_bytes(work: PlannedUpdate, trained: int) -> float:
    """Adam's two moments of what learns, and in bf16 its fp32 master weights; the distributed optimizer divides them among data and
    context ranks."""
    return trained * ((_MASTER if work.trained_size < 4 else 0) + _MOMENTS) / (work.replicas if work.distributed else 1)


def fp8_bytes(work: PlannedUpdate) -> float:
    """Transformer Engine's FP8 copies of the layers' matrices, which it keeps between passes: one for forward products, with the student's
    backward another, transposed."""
    copies = 2 if "student" in work.fp8 else 1 if work.fp8 else 0
    return float(copies * work.stage_layers * layer_parameters(work.arch, work.tensor))


def teacher_bytes(work: PlannedUpdate, trained: int) -> float:
    """On the device outside of the teacher's passes: a copy of what learns; an ema teacher of bf16 weights has its fp32 average too."""
    if not has_copy(work) or work.offload:
        return 0
    return trained * (work.trained_size + (4 if work.teacher == "ema" and work.trained_size < 4 else 0))


def has_copy(work: PlannedUpdate) -> bool:
    """Whether the teacher has weights of its own."""
    return work.teacher != "live" and not work.teacher_is_base


def layer_activation(work: PlannedUpdate, fused_norm: bool) -> float:
    """Bytes a token that the forward pass of a layer keeps for the backward, on one rank; in FP8 it is less.

    size · (Q + 2K projections + K + Q rotated + Q attention output + 2·F + 2·F of SwiGLU), Q, K, F divided by T, what products with
    weights that learn keep of their inputs, and what the norms of hidden states, queries and keys keep: with CUDA their inputs (that of
    the keys is a view of the projection); on a CPU two fp32 copies of each (of fp32 keys one, the other being that view), with frozen
    weights one (of fp32 keys none). Context ranks that gather keys and values keep those of all, 2·K a token, in place of
    their own rotated keys.
    """
    arch, size = work.arch, work.size
    q, k = arch.heads * arch.head_size / work.tensor, arch.query_groups * arch.head_size / work.tensor
    h, f, frozen = arch.hidden / work.split_hidden, arch.ffn / work.tensor, work.adapters is not None
    keys = k if work.context == 1 or work.ring else 2 * k * work.context
    kept = size * ((q + 2 * k) + keys + 2 * q + 4 * f) + kept_inputs(work, fused_norm)
    if fused_norm:
        return kept + size * (2 * h + (q if arch.qk_norm else 0))
    if keys != k and size < 4:
        kept -= size * 2 * k  # on a CPU nothing keeps the projections that were gathered, but fp32 keys a view
    if frozen:
        return kept + 4 * 2 * h + ((4 * q + (4 if size < 4 else 0) * k) if arch.qk_norm else 0)
    return kept + 8 * 2 * h + ((8 * q + (8 if size < 4 else 4) * k) if arch.qk_norm else 0)


def kept_inputs(work: PlannedUpdate, gpu: bool) -> float:
    """Bytes a token that a layer's products keep of their inputs, for the gradient of their other operand.

    Where all weights learn: size · (2·H norm outputs, under sequence parallelism / T, and F). With adapters: their inputs, in the adapters'
    type, of each of the fused products once: H, which torch's layers have gathered under sequence parallelism and Transformer Engine's
    have not, Q (in the model's type attention keeps it as well), H and F; and r for each adapter. With dropout each adapter has an input
    of its own, and a mask, of a byte an entry on a GPU and of an entry's size on a CPU.
    """
    arch, t, a = work.arch, work.tensor, work.adapters
    if a is None:
        return work.size * (2 * arch.hidden / work.split_hidden + arch.ffn / t)
    kept = 0.0
    for names in (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)):
        number = sum(name in a.targets for name in names)
        divided = t if names[0] in ROW_PARALLEL else work.split_hidden if work.ring else 1
        inputs = projections(arch)[names[0]][0] / divided
        shared = names == ("o_proj",) and a.size == work.size
        copies = number * (a.size + (1 if gpu else a.size)) if a.dropout else a.size * (number > 0 and not shared)
        kept += inputs * copies + number * a.rank * a.size
    return kept


def passes_in_flight(work: PlannedUpdate, stage: int, micro_batches: int) -> float:
    """Micro-batches, through all layers of the stage, that 1F1B keeps at most: PP - stage of them.

    Interleaved: 2·(PP - stage - 1) + (VP - 1)·PP + 1 chunks, each 1 / VP of the stage.
    """
    if work.virtual == 1:
        return min(micro_batches, work.pipeline - stage)
    chunks = 2 * (work.pipeline - stage - 1) + (work.virtual - 1) * work.pipeline + 1
    return min(micro_batches * work.virtual, chunks) / work.virtual


def factor_copies(work: PlannedUpdate) -> float:
    """Of one layer: the factors as its products take them. Those of a fused product are one A [R, inputs], and one B [outputs, R] with
    zeros where a row is another projection's; R is the sum of their ranks."""
    a = work.adapters
    if a is None:
        return 0.0
    sizes, total = projections(work.arch), 0.0
    for place in PROJECTIONS.values():
        rank = a.rank * sum(name in a.targets for name in place)
        inputs, outputs = sizes[place[0]][0], sum(sizes[name][1] for name in place)
        row = place[0] in ROW_PARALLEL
        total += rank * (inputs / (work.tensor if row else 1) + outputs / (1 if row else work.tensor))
    return total * a.size


def activation_bytes(work: PlannedUpdate, stage: int, fused_norm: bool = True) -> float:
    """All that a stage keeps for backward passes at its peak.

    A recomputed block keeps its input, size · H a token. The pass whose backward runs has, besides, either the layers that are not
    recomputed (on the last stage with the final norm and the hidden states, whole and of the responses), or later, when these are done,
    a block that is. Context ranks have a part of the tokens each, and all of the whole hidden states.
    """
    micro_batches, tokens = work.micro_batches(work.lengths.student)[0], work.fullest(work.lengths.student) / work.context
    layer, h = layer_activation(work, fused_norm) + factor_copies(work) / tokens, work.arch.hidden / work.split_hidden
    again = min(work.recompute.layers, work.stage_layers // work.virtual) * work.virtual
    kept, inputs = (work.stage_layers - again) * layer, again / work.recompute.block * work.size * h
    waiting = passes_in_flight(work, stage, micro_batches) - 1
    whole = work.size * work.arch.hidden * (1 + work.context)
    ends = h * (work.size if fused_norm else 4 if work.adapters else 8) + whole if stage == work.pipeline - 1 else 0
    return tokens * (waiting * (kept + inputs) + inputs + max(kept + ends, layer * work.recompute.block if again else 0))


def loss_bytes(work: PlannedUpdate, whole_chunk: bool = True) -> dict[str, float]:
    """Of the last stage: a chunk's logits (config.py on distill.chunk), gradient of a head that learns in fp32 and its rounded copy,
    gradients of the hidden states of a micro-batch's responses, and the teacher's hidden states of the whole update.

    whole_chunk: elementwise work on a whole chunk, as on a GPU or with T > 1; on one CPU it goes row by row.
    A mix of probabilities holds the logits of a second reading besides, as stored and in fp32.
    """
    arch, lengths = work.arch, work.lengths
    responses = work.fullest(lengths.student) * lengths.response / (lengths.student + lengths.response) / work.context
    rounded = work.size if work.size < 4 else 0
    head = 0 if work.adapters else vocabulary_parameters(arch, work.tensor)
    an_entry = 40 + 6 * (work.readings - 1) if whole_chunk or work.tensor > 1 else (1 + work.readings) * work.size
    on_loan = {"teacher's head, on loan": float(head * work.size)} if head and work.offload and has_copy(work) else {}
    return {
        "logits of a chunk": work.chunk * arch.vocabulary / work.tensor * an_entry,
        "gradients of the loss": (head + responses * arch.hidden) * (4 + rounded),
        "teacher's hidden states": work.readings * hidden_states_bytes(work),
        **on_loan,
    }


def hidden_states_bytes(work: PlannedUpdate) -> float:
    """The teacher's hidden states of all response tokens of an update, of one reading, divided among context ranks, not by T."""
    return work.sequences * work.lengths.response * work.arch.hidden * work.size / work.context


def kv_cache_bytes(work: PlannedUpdate, sequences: int, prompt: int, response: int) -> float:
    """Keys and values of all layers of a stage, the most at one time: 2 · K / T · size a token and layer, for prompt + response, those of
    one layer's half twice while rows move into a larger block."""
    width = work.arch.query_groups * work.arch.head_size / work.tensor
    return 2 * width * work.size * (work.stage_layers + 0.5) * sequences * (prompt + response)


def forward_bytes(work: PlannedUpdate, tokens: float) -> float:
    """What one layer has at a time when nothing is kept for a backward: size · (4·H + 2·Q + 2·K + 5·F) a token."""
    arch = work.arch
    split = 2 * (arch.heads + arch.query_groups) * arch.head_size + 5 * arch.ffn
    return tokens * work.size * (4 * arch.hidden + split / work.tensor)


def rollout_bytes(work: PlannedUpdate, stage: int) -> dict[str, float]:
    """KV cache, one layer's work on a pass of prompts, logits of a step, and the adapters' factors as all layers multiply by them."""
    rows = work.generated_at_once
    cache = kv_cache_bytes(work, rows, work.lengths.student, work.lengths.response)
    at_once = min(rows * work.lengths.student, max(PROMPT_TOKENS, work.lengths.student))
    found = {"KV cache": cache, "forward pass": forward_bytes(work, at_once)}
    found |= {"factors of the adapters": work.stage_layers * factor_copies(work)} if work.adapters else {}
    return found | ({"logits of a step": rows * work.arch.vocabulary * 12.0} if stage == work.pipeline - 1 else {})


def teacher_pass_bytes(work: PlannedUpdate, stage: int, trained: int) -> dict[str, float]:
    """One layer's work, an offloaded teacher's weights, and on the last stage the hidden states that are kept, of both readings."""
    found = {"forward pass": forward_bytes(work, work.fullest(work.lengths.teacher) / work.context)}
    if work.offload and has_copy(work):
        found["teacher, on loan"] = float(trained * work.trained_size)
    kept = (1 + bool(work.second_prompt)) * hidden_states_bytes(work)
    return found | ({"teacher's hidden states": kept} if stage == work.pipeline - 1 else {})


def rank_memory(work: PlannedUpdate, stage: int, overhead: float = 0.0, fragmentation: float = 0.0) -> RankMemory:
    """All of it, for a GPU; `overhead` bytes and the share `fragmentation` of the rest come on top."""
    trained, last = trained_parameters(work, stage), stage == work.pipeline - 1
    always = {
        "weights": float(stage_parameters(work, stage) * work.size),
        **({"adapters": adapter_bytes(work)} if work.adapters else {}),
        "gradients (fp32)": float(trained * _GRADIENT),
        "master weights and moments": optimizer_bytes(work, trained),
        "teacher": teacher_bytes(work, trained),
    }
    if work.fp8:
        always["FP8 copies of the weights"] = fp8_bytes(work)
    phases = {
        "rollout": rollout_bytes(work, stage),
        "teacher": teacher_pass_bytes(work, stage, trained),
        "student": {"activations": activation_bytes(work, stage)} | (loss_bytes(work) if last else {}),
    }
    spare = overhead + fragmentation * RankMemory(stage, always, phases).peak
    return RankMemory(stage, always | {"CUDA, NCCL, fragmentation": spare}, phases)
