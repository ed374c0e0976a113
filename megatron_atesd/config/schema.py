"""Every setting of a training run: one frozen dataclass a section.

    python tools/train.py --config FILE --exposure.mode fixed --exposure.fixed 1.0

Fields marked [paper] follow arXiv 2605.11458; [ours] is a default that the paper leaves open.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from megatron_atesd.config.health import HealthConfig

PathText = Annotated[str, "path"]  # `~` at its start is written out when settings are loaded
PathTexts = Annotated[list[str], "path"]  # of each
OPTIMIZER_DEFAULTS = {"lr": 5e-6, "clip_grad": 0.1, "weight_decay": 0.0}  # lr and clip_grad as in OPSD v3


@dataclass(frozen=True)
class RunConfig:
    """What to run and where to write.

    Args:
        dir: Run directory: config, metrics, TensorBoard, checkpoints and summary.
        seed: Seed of everything random: problem order, rollouts, controller.
        updates: Number of student updates.
        max_skipped: End the run after so many updates in a row whose loss or gradient was not finite, and which were therefore skipped.
    """

    dir: PathText = "runs/atesd"
    seed: int = 1
    updates: int = 100
    max_skipped: int = 3


@dataclass(frozen=True)
class ModelConfig:
    """The model that is student and teacher.

    Args:
        path: Megatron model folder (from hf_to_megatron.py), or a Hugging Face folder, which is loaded directly.
        dtype: Parameter and activation type; bf16 keeps fp32 master weights in the optimizer.
        attention: Layers of the model: te = Transformer Engine's (flash or cuDNN attention, FP8; needs a GPU), sdpa = torch's
            scaled_dot_product_attention and linear layers, auto = te for bf16 where it is installed and there is a GPU, else sdpa.
            The weights are the same.
    """

    path: PathText = ""
    dtype: Literal["fp32", "bf16"] = "fp32"
    attention: Literal["auto", "te", "sdpa"] = "auto"


Precision = Literal["bf16", "fp8_tensorwise", "fp8_delayed", "fp8_blockwise", "fp8_mxfp8"]


def fp8_recipe(precision: Precision | None) -> str | None:
    """The name that megatron.core and Transformer Engine have for it; None without FP8."""
    return precision.removeprefix("fp8_") if precision is not None and precision != "bf16" else None


@dataclass(frozen=True)
class PrecisionConfig:
    """In what the matrix products of the transformer layers are computed, by pass; null is as model.dtype.

    FP8 is Transformer Engine's, by recipe: tensorwise (a scale a tensor, of its own values), delayed (of earlier values: other passes
    have it only with the student's, whose gradients move the scales, and the first update begins with scales of 1), blockwise (128 × 128
    and 1 × 128 values a scale; Hopper), mxfp8 (32 values a scale; Blackwell). It needs model.dtype bf16 and model.attention te.
    Embedding, attention, norms, vocabulary head and loss stay as model.dtype or better.

    Args:
        student: The student's pass with gradients, and the probe.
        teacher: The teacher's pass, and the grounding.
        rollout: Generation, whose batch is filled up to a multiple of 16 or 32 rows.
    """

    student: Precision | None = None
    teacher: Precision | None = None
    rollout: Precision | None = None


LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on a frozen base, W + s·B·A, instead of training all weights.

    Args:
        rank: Rows of A and columns of B; 0 trains all weights. [paper: OPSD 64]
        alpha: s is alpha / rank; null is twice the rank. [paper: OPSD 128 at rank 64]
        dropout: Of the adapters' input in the student's pass. [ours]
        targets: Projections with an adapter, as PEFT spells them. [paper: OPSD all seven]
        rslora: s is alpha / √rank instead. [ours]
        dtype: Type of A and B and of what they compute; null is model.dtype. fp32 beside a bf16 base is what PEFT does. [ours]
        start: PEFT folder (adapter_model.safetensors, adapter_config.json) whose adapters the run starts from; empty = new ones, which
            change nothing yet. A teacher initial is then the base with these adapters. [ours]
    """

    rank: int = 0
    alpha: float | None = None
    dropout: float = 0.0
    targets: list[str] = field(default_factory=lambda: list(LORA_TARGETS))
    rslora: bool = False
    dtype: Literal["fp32", "bf16"] | None = None
    start: PathText = ""


@dataclass(frozen=True)
class ParallelConfig:
    """How the processes of torchrun divide the model; the data-parallel size is what is left.

    Args:
        tensor: Tensor-parallel size (TP); divides attention heads, query groups and the FFN width.
        pipeline: Pipeline-parallel size (PP); divides the number of layers.
        virtual_pipeline: Model chunks of a pipeline rank (VP); above 1 the schedule is the interleaved 1F1B, with a smaller bubble and
            more communication. pipeline × virtual_pipeline divides the number of layers.
        sequence: Sequence parallelism (SP): shard activations along the sequence between TP regions; needs tensor > 1.
        context: Context-parallel size (CP): so many ranks share each sequence in training and scoring passes, for sequences too long for
            one; each generates its share of the rollouts. With Transformer Engine keys and values go round the ranks, without it each rank
            gathers them.
        packed: Put the sequences of a micro-batch one after the other instead of padding each to the longest. Worth it when lengths
            differ a lot; on a GPU best with model.attention te.
        micro_batch_tokens: Tokens, padding included, in one forward pass of a data-parallel rank (of its CP ranks together); a longer
            sequence has a pass for itself.
        timeout_minutes: A collective that waits longer than this ends the job, once updates (or the evaluation's rollouts) have begun.
        start_timeout_minutes: The same before that: while ranks come together, build and load the model, gather the start model's
            responses and measure the first probe. It is at least timeout_minutes.
    """

    tensor: int = 1
    pipeline: int = 1
    virtual_pipeline: int = 1
    sequence: bool = False
    context: int = 1
    packed: bool = False
    micro_batch_tokens: int = 8192
    timeout_minutes: float = 30.0
    start_timeout_minutes: float = 30.0


@dataclass(frozen=True)
class DataConfig:
    """Problem files (JSONL: problem, solution, optional id and answer).

    Args:
        train: Problems to learn from.
        probe: Small held-out file, on which learning progress is measured (exposure.progress).
        probe_size: Use the first so many probe problems (0 = all).
        batch: Problems (one rollout each) in an update, over all data-parallel ranks.
        on_error: What a bad line does: end the run, or be counted, reported and left out.
    """

    train: PathText = ""
    probe: PathText = ""
    probe_size: int = 64
    batch: int = 32
    on_error: Literal["stop", "skip"] = "stop"


@dataclass(frozen=True)
class PromptConfig:
    """How prompts are rendered through the tokenizer's chat template.

    Args:
        student_thinking: Chat-template thinking switch of the student prompt.
        teacher_thinking: Chat-template thinking switch of the teacher prompt.
        instruction: Text after the problem in both roles.
        reference_intro: Line before the revealed reference segments (teacher only; left out when nothing is revealed).
        answer_intro: Line before the boxed answer (teacher only). [ours]
        transition: τ, the text that ends the teacher's extra context. [ours]
        max_length: Longest prompt in tokens, student or teacher; a longer one is refused.
    """

    student_thinking: bool = False
    teacher_thinking: bool = True
    instruction: str = "Reason step by step and put the final answer in \\boxed{}."
    reference_intro: str = "A verified solution of this problem begins like this:"
    answer_intro: str = "It ends with this final answer:"
    transition: str = "Understand the reasoning above, then solve the problem yourself in your own words, from the first step."
    max_length: int = 4096


@dataclass(frozen=True)
class RolloutConfig:
    """Sampling of the student's responses.

    Args:
        max_new_tokens: A response is cut after so many tokens.
        min_new_tokens: No stop token is sampled, and no stop text ends a response, before so many tokens. [ours]
        temperature: Divides the logits; 0 takes the most likely token. [paper: OPSD 1.1]
        top_k: Most likely tokens kept (0 = all). [paper: OPSD 20]
        top_p: Nucleus mass kept, after top-k. [paper: OPSD 0.95]
        min_p: Tokens less probable than this share of the most likely one are dropped, after top-p (0 = none). [ours]
        stop: Texts that end a response, besides the model's stop tokens. [ours]
    """

    max_new_tokens: int = 1024
    min_new_tokens: int = 0
    temperature: float = 1.1
    top_k: int = 20
    top_p: float = 0.95
    min_p: float = 0.0
    stop: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class EngineConfig:
    """What samples the responses, and how it works; how they are sampled is said by rollout.

    Args:
        name: training = the model that trains, from its very parameters; vllm = vLLM (the `vllm` extra) in the same process, which gets
            the weights before each round of rollouts.
        batch: Responses in the making at once on one data- and context-parallel rank (0 = all); the place of a finished one is taken by
            the next prompt.
        cache_gib: Memory for keys and values on one rank, GiB (0 = as much as the responses take; vllm: a share of what is free).
            A cache that is too small for engine.batch makes the batch smaller.
        checked: Responses of a data-parallel rank whose log-probabilities are compared with the training model's, each update
            (rollout/logprob_gap; 0 = none). health.logprob_gap says which gap is too wide.
    """

    name: Literal["training", "vllm"] = "training"
    batch: int = 0
    cache_gib: float = 0.0
    checked: int = 4


@dataclass(frozen=True)
class DistillConfig:
    """The self-distillation loss.

    Args:
        divergence: forward_kl = KL(teacher‖student) [paper], reverse_kl = KL(student‖teacher), jsd = generalised Jensen-Shannon.
        jsd_beta: Weight of the teacher in the JSD mixture, in (0, 1).
        clip: Bound τ of clip_mode, nats (0 = none). [paper: OPSD 0.05, 0.06 at 8B]
        clip_mode: What the bound cuts: entry = each vocabulary entry's term [paper: OPSD v3], which can lower the very tokens that the
            teacher wants most; token = the divergence D of each response token, by a weight min(1, clip / D) that has no gradient:
            the direction stays. [ours]
        temperature: Divides both logits before softmax; None takes rollout.temperature.
        normalize: token = sum / global count of response tokens; sequence = mean over sequences of per-sequence means.
        teacher: Teacher weights: initial = copy of the start, ema = moving average, live = the student itself, refreshed = copy of the
            student at the last measurement at which exposure.progress, on the probe problems, had gained on the copy before. [ours]
        ema_decay: Decay of the ema teacher, an update.
        refresh_every: Updates that a refreshed teacher stays at least. [ours]
        target: What a response token is drawn to. teacher = the teacher's distribution at the exposure in force [paper]. mix_exposures =
            (1 − mix_weight) of that and mix_weight of its distribution at mix_exposure. mix_unaided = the same mix of logits, with those
            of the teacher's weights at the student's prompt; with teacher initial that is the start model. Both mixes cost another pass of
            the teacher. [ours]
        mix_weight: Share of the second distribution in a mix, below 1. With mix_unaided it may be below 0: the target then leads away from
            what the teacher would write without a reference. [ours]
        mix_exposure: α of the second distribution of mix_exposures. [ours]
        teacher_offload: Keep the teacher's weights in host memory. Saves a copy of the weights on the device (an ema teacher of a bf16
            model: three, its average is fp32) outside the teacher's passes; costs as much pinned host memory (twice during
            a save), and a transfer of the weights a pass. The values are the same. [ours]
        chunk: Response tokens whose logits exist at one time; more is faster. Each takes about 40 bytes · vocabulary / TP
            with TP > 1 or on a GPU, else 8 bytes · vocabulary.
        compile: Let torch.compile fuse the loss between its matrix products, where a CPU then spends a third less time. Needs a C++
            compiler on a CPU, triton on a GPU (where it is not measured), and seconds at the first update. [ours]
        top_k: Compare the teacher's k most likely entries and one bucket for all others (0 = the whole vocabulary). [ours]
    """

    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    jsd_beta: float = 0.5
    clip: float = 0.05
    clip_mode: Literal["entry", "token"] = "token"
    temperature: float | None = None
    normalize: Literal["token", "sequence"] = "token"
    teacher: Literal["initial", "ema", "live", "refreshed"] = "initial"
    ema_decay: float = 0.999
    refresh_every: int = 10
    target: Literal["teacher", "mix_exposures", "mix_unaided"] = "teacher"
    mix_weight: float = 0.5
    mix_exposure: float = 0.0
    teacher_offload: bool = False
    chunk: int = 128
    compile: bool = False
    top_k: int = 0


@dataclass(frozen=True)
class ExposureConfig:
    """Reveal ratio α and its controller.

    Args:
        mode: learned = Beta-policy controller [paper]; aligned = each window the α whose distillation gradient agrees best with that of the
            progress loss [ours]; posterior = Bayesian regression of progress on exposure [ours]; target_kl = α rises while the KL to the
            teacher is below exposure.target_kl, and falls above it [ours]; fixed; linear and cosine schedules from start to end; step =
            one of levels after the other; random = uniform a window; none = teacher sees the student prompt.
        fixed: α of mode fixed (1 = OPSD).
        start: First α of linear, cosine and target_kl.
        end: Last α of linear and cosine.
        levels: α of each stage of mode step. [ours]
        step_at: Numbers of updates after which mode step goes on to its next level (empty = stages of equal length). The window that
            holds then is finished first. [ours]
        target_kl: Unclipped KL to the teacher, nats per response token, that mode target_kl aims at. [ours]
        target_rate: What α gains in a window of mode target_kl with a KL of 0; in general it gains target_rate · (1 − KL / target_kl).
            [ours]
        reference: Whose reference the teacher sees: own = the problem's; shuffled = another problem's of the same file, its answer
            included, the same for the whole run, and with as many segments where there is one [ours]; none = nobody's, and no answer: the
            bare question as the teacher is asked it. [ours]
        bins: Difficulty bins of the problems, each with an α, a controller and a progress of its own; 1 = one α for all [paper]. For modes
            fixed, learned, aligned, posterior and target_kl. [ours]
        difficulty: By what problems are sorted into bins: nll = the start model's mean NLL per token of the reference; pass_rate = share of
            its responses that are wrong, of difficulty_samples to each training problem; field = a number in the problem file. [ours]
        difficulty_samples: Responses of the start model to each training problem, for pass_rate (to probe problems: probe_samples). [ours]
        difficulty_field: Name of that number; higher is harder. [ours]
        bin_edges: Highest difficulty in each bin but the last (empty = about as many training problems in each bin). [ours]
        fixed_by_bin: α of each bin in mode fixed with bins above 1, easiest first.
        reveal: Reference segments shown: floor(α·m) [paper] or nearest floor(α·m + ½) [ours].
        hold: H, updates that one decision is held; a twelfth of the updates, 4 at least, suits mode posterior. [ours]
        lookahead: L, updates after a decision that its reward looks at. [ours]
        discount: γ of the look-ahead reward. [ours]
        grounding_weight: λ_gt, weight of the grounding term. [ours]
        normalize_terms: Divide each reward term by its running standard deviation first. [ours]
        positive_part: Count only drops of the progress signal [paper]; false sums signed changes.
        batch: B, new decisions in one policy update. [ours]
        replay: Older decisions that a policy update learns from again, importance-weighted (0 = none, plain REINFORCE [paper]). [ours]
        hidden: Width of the policy's hidden layer. [ours]
        lr: Learning rate of the policy's Adam; the default suits about 50 decisions, take half for 200. [ours]
        advantage: batch = standardised within the decisions of the policy update [paper]; ema = against a running mean and variance.
        entropy_target_start: Entropy target at the start; negative (Beta entropy is at most 0). [ours]
        entropy_target_end: Entropy target at the end. [ours]
        entropy_coef: Weight of the penalty above the target. [ours]
        entropy_floor: Also penalise entropy below this value (null = off). [ours]
        clip_low: Lowest α used. [ours]
        clip_high: Highest α used. [ours]
        ema_decay: Decay of the state statistics. [ours]
        progress: Progress signal ℓ, see docs/exposure.md. probe_nll: NLL of the probe problems' references [paper] (can prefer the worst
            exposure). probe_own: NLL of the start model's own correct responses to the probe problems. probe_margin: that less
            wrong_weight times the NLL of its own wrong ones. probe_accuracy: of fresh responses to the probe problems. train_accuracy: of
            the update's rollouts, free. probe_kl: KL at one fixed exposure. train_kl: KL of the update (depends on α: biased). [ours]
        grounding: Text whose log-probability grounds the teacher of mode learned: the reference solution, the start model's own correct
            responses, the boxed answer, or off: the reward is then learning progress alone. [ours]
        probe_every: Updates between two measurements of the probe, besides the start and the last update (null = each update where the
            controller needs it, else every 10). [ours]
        probe_samples: Responses of the start model to each probe problem, of which probe_own and probe_margin take theirs. [ours]
        wrong_weight: Share of the wrong responses' NLL in probe_margin. [ours]
        grid: Number of exposures that mode aligned compares, evenly spaced from clip_low to clip_high. [ours]
        score_step: Root mean square of the step along the progress gradient by which mode aligned scores exposures, in units of
            optimizer.lr: an update of Adam moves weights by at most about 1. [ours]
        score_share: Share of the update's rollouts that teacher and student read for these scores. [ours]
        score_decay: Weight of the earlier windows' scores in mode aligned. [ours]
        warmup_exposure: α of the updates before the first decision. [ours]
        warmup_updates: Updates before the first decision. [ours]
        probe_exposure: Fixed α of the probe_kl signal. [ours]
        bias_check: Before the first update, try so many updates at each of α = 0, 0.5 and 1 and say whether the progress signals prefer the
            exposure after which the student solves more, see docs/exposure.md (0 = off). The state is then as it was. Costs three times
            so many updates, probe rollouts, and disk for a checkpoint. [ours]
    """

    mode: Literal["learned", "aligned", "posterior", "target_kl", "fixed", "linear", "cosine", "step", "random", "none"] = "learned"
    fixed: float = 1.0
    start: float = 0.0
    end: float = 1.0
    levels: list[float] = field(default_factory=lambda: [0.0, 1.0])
    step_at: list[int] = field(default_factory=list[int])
    target_kl: float = 0.05
    target_rate: float = 0.1
    reference: Literal["own", "shuffled", "none"] = "own"
    bins: int = 1
    difficulty: Literal["nll", "pass_rate", "field"] = "nll"
    difficulty_samples: int = 4
    difficulty_field: str = "difficulty"
    bin_edges: list[float] = field(default_factory=list[float])
    fixed_by_bin: list[float] = field(default_factory=list[float])
    reveal: Literal["floor", "nearest"] = "floor"
    hold: int = 2
    lookahead: int = 5
    discount: float = 0.9
    grounding_weight: float = 0.1
    normalize_terms: bool = True
    positive_part: bool = True
    batch: int = 2
    replay: int = 16
    hidden: int = 32
    lr: float = 2e-2
    advantage: Literal["batch", "ema"] = "batch"
    entropy_target_start: float = -0.1
    entropy_target_end: float = -0.8
    entropy_coef: float = 0.01
    entropy_floor: float | None = None
    clip_low: float = 0.0
    clip_high: float = 1.0
    ema_decay: float = 0.9
    progress: Literal["probe_nll", "probe_own", "probe_margin", "probe_accuracy", "train_accuracy", "probe_kl", "train_kl"] = "probe_nll"
    grounding: Literal["solution", "own", "answer", "off"] = "solution"
    probe_every: int | None = None
    probe_samples: int = 12
    wrong_weight: float = 0.1
    grid: int = 5
    score_step: float = 0.4
    score_share: float = 0.25
    score_decay: float = 0.8
    warmup_exposure: float = 1.0
    warmup_updates: int = 0
    probe_exposure: float = 0.5
    bias_check: int = 0


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning-rate schedule around optimizer.lr (megatron.core OptimizerParamScheduler).

    Args:
        warmup_updates: Linear warm-up over W updates: lr · 1/W, 2/W, … 1.
        decay: Shape after warm-up; wsd stays constant and decays linearly over the last decay_updates.
        decay_updates: Length of the wsd decay.
        min_lr: Final learning rate.
    """

    warmup_updates: int = 0
    decay: Literal["constant", "linear", "cosine", "wsd"] = "constant"
    decay_updates: int = 0
    min_lr: float = 0.0


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints in <run.dir>/checkpoints.

    Args:
        every: Save after every so many updates (0 = only at the end).
        keep: Newest checkpoints kept (0 = all).
        keep_every: Besides, keep each step_N with N a multiple of this (0 = none).
        resume: auto = go on from the newest valid checkpoint of this run directory; step_N = go back to that one (newer ones are
            renamed to step_N.aside; start again with auto); never = refuse a directory that has one.
        on_error: When a save fails: stop, or continue without it (metric checkpoint/failed); the last save of a job must not fail.
        background: Write while training goes on; needs host memory for a second copy of what is saved.
    """

    every: int = 50
    keep: int = 2
    keep_every: int = 0
    resume: str = "auto"
    on_error: Literal["stop", "continue"] = "stop"
    background: bool = False


@dataclass(frozen=True)
class MonitorConfig:
    """Console, TensorBoard and report.

    Args:
        tensorboard: Write TensorBoard events to <run.dir>/tensorboard.
        figure_every: Draw the pictures of the run so far into TensorBoard every so many updates and after the last one (0 = never).
        samples: Keep a sample rollout with the KL of each token every so many updates (0 = never), also for TensorBoard and the report;
            where an update is a row on the console, print it too.
        report: Write <run.dir>/report.html at the end.
        console: What an update prints: columns = a row for a person, values = key=value for a program, auto = columns on a terminal and
            values elsewhere. --log-level warning prints none.
    """

    tensorboard: bool = True
    figure_every: int = 10
    samples: int = 10
    report: bool = True
    console: Literal["auto", "columns", "values"] = "auto"


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation during training, on held-out problem files.

    There is one before the first update, one after every so many, and one after the last. They change nothing of the run. A problem's
    samples have the same seeds each time, so that evaluations differ by the weights alone. Before the evaluation after update N, step_N
    is saved. rollout.stop ends its responses too.

    Args:
        files: Problem files (JSONL); a file's name without its ending is its name in metrics and in select_on (empty = no evaluation).
            They may share no problem with data.train or data.probe. [ours]
        every: Updates between two evaluations (0 = only before the first update and after the last). [ours]
        samples: K, responses to each problem. [ours]
        seed: Seed of the samples. [ours]
        temperature: As rollout.temperature; 0 takes the most likely token, with one sample. [ours]
        top_k: As rollout.top_k. [ours]
        top_p: As rollout.top_p. [ours]
        max_new_tokens: A response is cut after so many tokens (null = rollout.max_new_tokens). [ours]
        engine: What samples (null = engine.name). vllm needs engine.name vllm; training can be had beside it. [ours]
        thinking: Chat-template thinking switch (null = prompt.student_thinking). [ours]
        select: What the run's result is, decided before it begins. last = the last checkpoint. best = the checkpoint with the highest
            Average@K on select_on: it is kept whatever checkpoint.keep says, and named in <run.dir>/best.json. Its figure on that file is
            biased upward, as the highest of several; those on the other files are not, so they may share no problem with it. [ours]
        select_on: Name of the file that select best goes by. [ours]
    """

    files: PathTexts = field(default_factory=list[str])
    every: int = 50
    samples: int = 4
    seed: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.95
    max_new_tokens: int | None = None
    engine: Literal["training", "vllm"] | None = None
    thinking: bool | None = None
    select: Literal["last", "best"] = "last"
    select_on: str = ""


@dataclass(frozen=True)
class TrainConfig:
    """A whole training run.

    Args:
        megatron: Fields of megatron.core TransformerConfig; one that this project cannot work with is refused at the start.
            gradient_accumulation_fusion needs NVIDIA Apex, nothing else does.
        optimizer: Any field of megatron.core OptimizerConfig (lr 5e-6, clip_grad 0.1, weight_decay 0 unless set).
        ddp: Any field of megatron.core DistributedDataParallelConfig; overlap_grad_reduce and overlap_param_gather hide communication.
    """

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    exposure: ExposureConfig = field(default_factory=ExposureConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    megatron: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    ddp: dict[str, Any] = field(default_factory=dict)
