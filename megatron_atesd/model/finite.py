"""Whether all of a tensor's values are numbers."""

from torch import Tensor


def all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite, in one fast pass: aminmax passes NaN on, and isfinite is far slower on a CPU."""
    return not values.numel() or all(bool(extreme.isfinite()) for extreme in values.aminmax())
