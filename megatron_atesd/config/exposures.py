"""A list of exposures as an option of a command."""

from megatron_atesd.errors import ConfigError


def exposures(text: str) -> list[float]:
    """`α,α,…` of the option --alphas as numbers. Raises ConfigError for anything but two or more from 0 to 1 that rise."""
    try:
        alphas = [float(part) for part in text.split(",")]
    except ValueError:
        alphas = []
    if problem := exposures_problem(alphas):
        raise ConfigError(f"--alphas is {text!r}, {problem}, with commas between them; for example 0,0.25,0.5,0.75,1")
    return alphas


def exposures_problem(alphas: list[float]) -> str | None:
    """What such a list must be, where it is not."""
    good = len(alphas) > 1 and all(0 <= alpha <= 1 for alpha in alphas) and sorted(set(alphas)) == alphas
    return None if good else "must be two or more numbers from 0 to 1, each above the one before"
