"""The options of tools/mismatch.py that need no model: which settings of a training they decide."""

# Settings of a training, each with the flag that decides it.
DECIDED = {
    "model.path": "--model",
    "data.train": "--data",
    "data.probe": "--data",
    "run.seed": "--seed",
    "run.dir": "--out",
    "exposure.mode": "--alphas",
    "exposure.fixed": "--alphas",
}
