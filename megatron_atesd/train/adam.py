"""Adam's moments and its count of steps (and SGD's momentum), for torch's Adam and the fused ones of Transformer Engine and NVIDIA Apex.

megatron.core takes the first that is installed of Transformer Engine's, Apex's and torch's. torch's counts steps beside each parameter's
moments, the fused ones in each group of parameters. Here one count is saved and loaded, so that a checkpoint of one goes on with another.
"""

from typing import Any

import torch


def is_adam(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it keeps moments (SGD may not)."""
    return "betas" in optimizer.defaults


def fuse(adam: torch.optim.Optimizer) -> None:
    """Let torch's Adam of weights on a CPU read and write memory once a step, not once an operation. Loading replaces it: again after."""
    if isinstance(adam, torch.optim.Adam):
        for group in adam.param_groups:
            group["fused"] = all(parameter.device.type == "cpu" for parameter in group["params"])


def start_moments(part: Any) -> None:
    """Zeros where `part`, megatron.core's optimizer around an Adam or SGD, has none yet: else it saves and loads nothing before a step."""
    part.init_state_fn(part.optimizer, part.config)
    if isinstance(part.optimizer, torch.optim.Adam):
        for of_parameter in part.optimizer.state.values():
            of_parameter.setdefault("step", torch.tensor(0.0))


def start_momentum(sgd: torch.optim.Optimizer, config: object) -> None:
    """Zeros where an SGD with momentum has none yet, from which its first step is the same; as megatron.core's function for an Adam."""
    for group in sgd.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            sgd.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))


def translate_steps(state: dict[str, Any], adam: torch.optim.Optimizer) -> int:
    """Rewrite the count of steps in an Adam's loaded state, whichever Adam saved it, for megatron.core to load into `adam`; returns it."""
    moments, groups = state.get("state"), state["param_groups"]  # the distributed optimizer's moments are elsewhere
    counts = [(moments or {}).pop("common_step", None), *(group.pop("step", None) for group in groups)]
    steps = max((int(count) for count in counts if count is not None), default=0)
    if moments is not None and isinstance(adam, torch.optim.Adam):
        moments["common_step"] = torch.tensor(float(steps))
        return steps
    for group in groups:
        group["step"] = steps
        for name, value in adam.defaults.items():  # settings that another Adam, should it have saved the group, does not know
            group.setdefault(name, value)
    return steps


def set_steps(adam: torch.optim.Optimizer, steps: int) -> None:
    """A counter of its own for each parameter of torch's Adam, which advances each."""
    if isinstance(adam, torch.optim.Adam):
        for of_parameter in adam.state.values():
            of_parameter["step"] = torch.tensor(float(steps))
