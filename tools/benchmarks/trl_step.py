"""The same step in TRL's SDFTTrainer with full-vocabulary distillation: python trl_step.py TASK.json RESULT.json

For the contender trl-lora with a PEFT config of adapters on all projections; its teacher is then the model without them.

Runs in an environment of its own that has trl, and so imports only what is installed there. The trainer generates its own
rollouts; they are timed and then replaced by the job's responses, so that loss and work are those of the other contenders.
"""

import json
import os
import sys
import time
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1", TOKENIZERS_PARALLELISM="false")

import torch
from datasets import Dataset  # pyright: ignore[reportMissingImports]
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl.experimental.sdft import SDFTConfig, SDFTTrainer  # pyright: ignore[reportMissingImports]

LEARNING_RATE, CLIP_NORM = 5e-6, 0.1
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class PeakMemory:
    """Peak GiB since `reset`: resident memory of the process (Linux), or what torch allocated with CUDA."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.reset()
        self.start = self.peak()

    def reset(self) -> None:
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> float:
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated() / 2**30
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) / 2**20


class TimedTrainer(SDFTTrainer):
    """SDFTTrainer whose phases are timed from outside its methods; it computes what it always computes.

    teacher, student: forward up to the vocabulary projection, and the student's backward below it. loss: from there to the scalar,
    and back. optimizer: from the end of the backward to the end of the step (clipping, update). generation: `_generate`.
    """

    def prepare(self, job: dict[str, Any], memory: PeakMemory) -> None:
        self.job, self.memory = job, memory
        self.responses = dict(zip(map(tuple, job["ids"]["prompts"]), job["ids"]["responses"], strict=True))
        self.seconds: dict[str, float] = defaultdict(float)
        self.steps: list[dict[str, float]] = []
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.passes = 0
        for model in {id(model): model for model in (self.model, self.teacher_model)}.values():  # with adapters they are one
            model.lm_head.register_forward_pre_hook(self._head_begins)
        clip = self.accelerator.clip_grad_norm_

        def clip_and_keep(*arguments: Any, **options: Any) -> Any:
            norm = clip(*arguments, **options)
            self.norms.append(float(norm))
            return norm

        self.accelerator.clip_grad_norm_ = clip_and_keep

    def _head_begins(self, _: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        self.head_began = now()
        if inputs[0].requires_grad:
            inputs[0].register_hook(self._loss_backward_ends)

    def _loss_backward_begins(self, _: torch.Tensor) -> None:
        self.backward_began = now()

    def _loss_backward_ends(self, _: torch.Tensor) -> None:
        self.backward_left_loss = now()
        self.seconds["loss"] += self.backward_left_loss - self.backward_began

    def _generate(self, prompt_ids: list[list[int]]) -> Any:
        started = now()
        prompts, _ = super()._generate(prompt_ids)
        self.seconds["generation"] += now() - started
        return prompts, [list(self.responses[tuple(prompt)]) for prompt in prompt_ids]

    def _forward_logits(self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int) -> Any:
        started = now()
        logits = super()._forward_logits(model, input_ids, attention_mask, logits_to_keep)
        self.seconds["student" if torch.is_grad_enabled() else "teacher"] += self.head_began - started
        self.seconds["loss"] += now() - self.head_began
        return logits

    def _compute_self_distillation_loss(self, *arguments: Any, **options: Any) -> Any:
        started = now()
        loss = super()._compute_self_distillation_loss(*arguments, **options)
        self.seconds["loss"] += now() - started
        loss.register_hook(self._loss_backward_begins)
        return loss

    def training_step(self, *arguments: Any, **options: Any) -> Any:
        micro_batches = self.args.gradient_accumulation_steps
        if self.passes == self.job["warmup"] * micro_batches:
            self.memory.reset()
        loss = super().training_step(*arguments, **options)
        self.backward_ended = now()
        self.seconds["student"] += self.backward_ended - self.backward_left_loss
        self.losses.append(float(loss))
        self.passes += 1
        return loss

    def end_step(self) -> None:
        self.seconds["optimizer"] += now() - self.backward_ended
        self.steps.append(dict(self.seconds))
        self.seconds.clear()


class StepEnd(TrainerCallback):
    """Tells the trainer that an update is done."""

    def __init__(self, trainer: TimedTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.trainer.end_step()


def toy_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Token i is the word of its number; 0 is padding, 1 the end of text."""
    words = {"<pad>": 0, "<eos>": 1} | {str(i): i for i in range(2, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def settings(job: dict[str, Any], folder: str) -> Any:
    """SDFT with a frozen teacher and forward KL over the whole vocabulary; nothing saved, logged or recomputed."""
    workload = job["workload"]
    sequences = workload["micro_batch"] or workload["prompts"]
    return SDFTConfig(
        output_dir=folder,
        model_init_kwargs={"dtype": DTYPES[job["dtype"]]},
        distillation_mode="full_logits",
        distillation_alpha=0.0,
        distillation_is_clip=None,
        teacher_model_kind="base",
        teacher_prompt_template="{prompt} {privileged_context}",
        num_generations=1,
        max_prompt_length=None,
        max_completion_length=workload["response_tokens"],
        generation_kwargs={"min_new_tokens": workload["response_tokens"]},
        shuffle_dataset=False,
        per_device_train_batch_size=sequences,
        gradient_accumulation_steps=workload["prompts"] // sequences,
        max_steps=job["warmup"] + job["steps"],
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=CLIP_NORM,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=job["device"] == "cpu",
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def adapters(job: dict[str, Any]) -> Any:
    """The PEFT config, or None where all weights learn."""
    if job["contender"] != "trl-lora":
        return None
    from peft import LoraConfig

    targets = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
    return LoraConfig(r=job["lora_rank"], lora_alpha=job["lora_alpha"], target_modules=targets, task_type="CAUSAL_LM")


@torch.no_grad()
def start_adapters(model: torch.nn.Module, path: str) -> None:
    """Take over A from the file that all contenders with adapters get; B is zero."""
    parameters = dict(model.named_parameters())
    for name, value in load_file(path).items():
        parameters[f"base_model.model.{name.replace('.weight', '.default.weight')}"].copy_(value)


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    rows = {
        column: [" ".join(map(str, ids)) for ids in job["ids"][role]]
        for column, role in (("prompt", "prompts"), ("privileged_context", "references"))
    }
    updates = job["warmup"] + job["steps"]
    data = Dataset.from_dict({column: texts * updates for column, texts in rows.items()})
    tokenizer = toy_tokenizer(job["workload"]["vocabulary"])
    memory = PeakMemory(job["device"])
    options = settings(job, str(Path(sys.argv[2]).parent / "trl"))
    lora = adapters(job)
    trainer = TimedTrainer(model=job["model"], args=options, train_dataset=data, processing_class=tokenizer, peft_config=lora)
    if lora is not None:
        start_adapters(trainer.model, job["adapters"])
    trainer.prepare(job, memory)
    trainer.add_callback(StepEnd(trainer))
    trainer.train()
    peak, micro_batches = memory.peak(), trainer.args.gradient_accumulation_steps
    result = {
        "steps": trainer.steps[job["warmup"] :],
        "loss": sum(trainer.losses[:micro_batches]),
        "grad_norm": trainer.norms[0],
        "peak_gib": peak,
        "over_start_gib": peak - memory.start,
        "versions": {name: version(name) for name in ("trl", "transformers", "torch")},
    }
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
