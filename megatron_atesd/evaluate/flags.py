"""Settings of a training run that an evaluation decides by flags of its own: dotted name → flag."""

FLAGS = {
    "rollout.temperature": "--temperature",
    "rollout.top_p": "--top-p",
    "rollout.top_k": "--top-k",
    "rollout.max_new_tokens": "--max-new-tokens",
    "prompt.student_thinking": "--thinking or --no-thinking",
    "run.seed": "--seed",
    "run.dir": "--out",
    "model.path": "--model",
    "data.train": "--data",
    "data.probe": "--data",
}
