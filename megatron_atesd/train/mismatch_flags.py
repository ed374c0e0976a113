"""The options of tools/mismatch.py that need no model: which exposures, and which settings of a training they decide."""

from megatron_atesd.errors import ConfigError

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


def exposures(text: str) -> list[float]:
    """`α,α,…` as numbers. Raises ConfigError for anything but two or more from 0 to 1 that rise."""
    try:
        alphas = [float(part) for part in text.split(",")]
    except ValueError:
        alphas = []
    if len(alphas) < 2 or not all(0 <= alpha <= 1 for alpha in alphas) or sorted(set(alphas)) != alphas:
        raise ConfigError(
            f"--alphas is {text!r}, must be two or more numbers from 0 to 1, each above the one before, with commas between them; "
            "for example 0,0.25,0.5,0.75,1"
        )
    return alphas
