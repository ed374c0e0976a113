"""Settings of a training run that an evaluation decides by flags of its own: dotted name → flag.

All of `rollout` is among them, so that nothing of how a training samples reaches an evaluation unsaid.
"""

FLAGS = {
    "rollout.temperature": "--temperature",
    "rollout.top_p": "--top-p",
    "rollout.top_k": "--top-k",
    "rollout.min_p": "--min-p",
    "rollout.max_new_tokens": "--max-new-tokens",
    "rollout.min_new_tokens": "--min-new-tokens",
    "rollout.stop": "--stop",
    "engine.name": "--engine",
    "prompt.student_thinking": "--thinking or --no-thinking",
    "run.seed": "--seed",
    "run.dir": "--out",
    "model.path": "--model",
    "data.train": "--data",
    "data.probe": "--data",
}
