"""The files that a training evaluates on, read and checked before the heavy work, and what decides the responses to them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_atesd.checkpoint.model_inputs import ModelInputs
from megatron_atesd.config import RolloutConfig, TrainConfig
from megatron_atesd.config.eval_rules import eval_names
from megatron_atesd.data.problems import check_disjoint, load_problems
from megatron_atesd.errors import CheckpointError, ConfigError
from megatron_atesd.evaluate.evaluation import with_flags
from megatron_atesd.evaluate.flags import FLAGS
from megatron_atesd.evaluate.same_settings import SETTINGS, Decisive, decisive_settings
from megatron_atesd.model.micro_batches import TokenIds
from megatron_atesd.records import Problem
from megatron_atesd.rollout.cache_room import cache_tokens

# What differs between two evaluations of one run by nature.
OF_THE_MODEL = ("--model", "what is in --model", "lora.start")
# What a flag of tools/evaluate.py is called in section eval, where it is not called so as well.
_OWN_NAMES = {"--thinking": "eval.thinking", "the problems in --data": "the content of eval.files"}
_OF_ROLLOUT = ("rollout.min_new_tokens", "rollout.min_p", "rollout.stop")


@dataclass(frozen=True)
class EvaluationFile:
    """One of eval.files. name: what metrics call it. prompts: ids of the student's prompt of each problem."""

    name: str
    path: Path
    problems: Sequence[Problem]
    prompts: Sequence[TokenIds]


def read_files(
    config: TrainConfig, model: ModelInputs, megatron: TransformerConfig, train: Sequence[Problem], probe: Sequence[Problem]
) -> tuple[EvaluationFile, ...]:
    """The files of eval.files.

    Raises DataError for a bad file and for a problem that is also in data.train, data.probe, or the file that selects; ConfigError where
    a prompt and a response exceed the model's positions or engine.cache_gib.
    """
    files: list[EvaluationFile] = []
    settings = evaluation_settings(config)
    for name, path in zip(eval_names(config.eval.files), map(Path, config.eval.files), strict=True):
        problems = load_problems(path, config.data.on_error)
        check_disjoint({f"data.train {config.data.train}": train, f"eval.files {path}": problems})
        check_disjoint({f"data.probe {config.data.probe}": probe, f"eval.files {path}": problems})
        prompts = [model.renderer.student(problem, settings.prompt.student_thinking) for problem in problems]
        files.append(EvaluationFile(name, path, problems, prompts))
        _check_room(settings, model, megatron, files[-1])
    check_selecting(files, config.eval.select_on)
    return tuple(files)


def check_selecting(files: Sequence[EvaluationFile], name: str) -> None:
    """Raise DataError where a file shares a problem with the one that selects: its figures at the selected step would be biased too."""
    selecting = {f"eval.files {file.path}, which selects": file.problems for file in files if file.name == name}
    for file in files:
        if selecting and file.name != name:
            check_disjoint({**selecting, f"eval.files {file.path}": file.problems})


def _check_room(settings: TrainConfig, model: ModelInputs, megatron: TransformerConfig, file: EvaluationFile) -> None:
    response, positions = settings.rollout.max_new_tokens, model.architecture.max_positions
    prompt, longest = max((len(ids), problem.id) for ids, problem in zip(file.prompts, file.problems, strict=True))
    if prompt + response > positions:
        raise ConfigError(
            f"the {prompt} tokens of the prompt of problem {longest!r} of eval.files {file.path} and {response} of a response are "
            f"{prompt + response}, must not exceed the model's {positions} positions; lower eval.max_new_tokens, or leave the problem out"
        )
    if settings.engine.name == "training":
        what = f"the {prompt} tokens of the longest prompt of eval.files {file.path} and {response} of a response"
        cache_tokens(settings.engine, model.architecture, megatron, prompt + response, what)


def evaluation_settings(config: TrainConfig) -> TrainConfig:
    """The run's settings with the sampling, the engine and the thinking switch of its evaluations."""
    asked = config.eval
    sampling = RolloutConfig(
        max_new_tokens=asked.max_new_tokens or config.rollout.max_new_tokens,
        temperature=asked.temperature,
        top_k=asked.top_k,
        top_p=asked.top_p,
        stop=config.rollout.stop,
    )
    thinking = config.prompt.student_thinking if asked.thinking is None else asked.thinking
    return with_flags(config, sampling, asked.engine or config.engine.name, thinking)


def with_room(config: TrainConfig) -> TrainConfig:
    """Settings to build the run's engine by: with room for the longest response of rollouts and evaluations alike."""
    if not config.eval.files:
        return config
    longest = max(config.rollout.max_new_tokens, evaluation_settings(config).rollout.max_new_tokens)
    return replace(config, rollout=replace(config.rollout, max_new_tokens=longest))


def decisive(config: TrainConfig, file: EvaluationFile, model: Path) -> Decisive:
    """What decides the responses of the model in the folder `model`, as tools/evaluate.py writes it down."""
    found = decisive_settings(evaluation_settings(config), model, file.problems, config.eval.samples, config.eval.seed)
    return found | ({"lora.start": config.lora.start} if config.lora.start else {})


def evaluation_folder(run_dir: Path, file: EvaluationFile, step: int) -> Path:
    """Of one evaluation: settings.json, evaluation.json and responses.jsonl."""
    return run_dir / "eval" / file.name / f"step_{step}"


def check_same_evaluations(run_dir: Path, step: int, config: TrainConfig, files: Sequence[EvaluationFile]) -> None:
    """Raise CheckpointError where evaluations up to update `step` were made with other settings or problems: curves would have a break."""
    for file in files:
        there = next((s for s in range(step, -1, -1) if (evaluation_folder(run_dir, file, s) / SETTINGS).is_file()), None)
        if there is None:
            continue
        folder = evaluation_folder(run_dir, file, there)
        was = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        if changes := list(_changes(was, decisive(config, file, Path(config.model.path)))):
            raise CheckpointError(
                f"{folder} was evaluated otherwise: {', '.join(changes)}; set it back, rename the file, or choose another run.dir"
            )


def _changes(was: Decisive, now: Decisive) -> Iterator[str]:
    names = {flag: name.replace("rollout.", "eval.") for name, flag in FLAGS.items() if name.startswith("rollout.")}
    names |= {FLAGS[name]: name for name in _OF_ROLLOUT} | {"--samples": "eval.samples", "--seed": "eval.seed", "--engine": "eval.engine"}
    names |= _OWN_NAMES
    for flag in dict.fromkeys((*now, *was)):
        if flag in OF_THE_MODEL or was.get(flag) == now.get(flag):
            continue
        name = names.get(flag, flag)
        yield f"{name} differs" if "content" in name else f"{name} is {json.dumps(now.get(flag))}, there {json.dumps(was.get(flag))}"
