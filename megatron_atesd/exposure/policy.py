"""The Beta exposure policy: f_φ(s) → (a, b), α ~ Beta(a, b). Pure functions on a dict of float64 tensors.

Dimensions here: N decisions, F = 6 state features, M hidden units.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

Parameters = dict[str, Tensor]
INTERIOR = 1e-6  # samples stay this far from 0 and 1, where the density of a unimodal Beta is 0


def init_parameters(features: int, hidden: int, generator: torch.Generator) -> Parameters:
    """Weights of f_φ: features → hidden (tanh) → 2, drawn from `generator` alone.

    The last layer is zero, so the policy starts at a = b = 1 + ln 2 ≈ 1.693 (mean ½) in every state.
    """
    bound = 1 / math.sqrt(features)
    weight_MF = (torch.rand(hidden, features, generator=generator, dtype=torch.float64) * 2 - 1) * bound
    zeros = {"hidden.bias": torch.zeros(hidden), "out.weight": torch.zeros(2, hidden), "out.bias": torch.zeros(2)}
    parameters = {"hidden.weight": weight_MF} | {name: zero.double() for name, zero in zeros.items()}
    return {name: value.requires_grad_() for name, value in parameters.items()}


def concentrations(parameters: Parameters, state_NF: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b) = 1 + softplus(f_φ(s)), each [N] and above 1: unimodal (ATESD, the controller)."""
    hidden_NM = torch.tanh(functional.linear(state_NF, parameters["hidden.weight"], parameters["hidden.bias"]))
    out_N2 = functional.linear(hidden_NM, parameters["out.weight"], parameters["out.bias"])
    a_N, b_N = (1 + functional.softplus(out_N2)).unbind(-1)
    return a_N, b_N


def log_prob(alpha_N: Tensor, a_N: Tensor, b_N: Tensor) -> Tensor:
    """Log-density of Beta(a, b) at α in (0, 1), [N]."""
    return (a_N - 1) * torch.log(alpha_N) + (b_N - 1) * torch.log1p(-alpha_N) - _log_beta(a_N, b_N)


def entropy(a_N: Tensor, b_N: Tensor) -> Tensor:
    """Differential entropy of Beta(a, b) in nats, [N]; at most 0, which is the uniform distribution."""
    spread_N = (a_N - 1) * torch.digamma(a_N) + (b_N - 1) * torch.digamma(b_N)
    return _log_beta(a_N, b_N) - spread_N + (a_N + b_N - 2) * torch.digamma(a_N + b_N)


def sample(a_N: Tensor, b_N: Tensor, generator: torch.Generator) -> Tensor:
    """α ~ Beta(a, b) as x / (x + y) of two gamma variates, [N], without gradient; the global RNG is never touched."""
    x_N = torch._standard_gamma(a_N.detach(), generator=generator)  # pyright: ignore[reportPrivateImportUsage]
    y_N = torch._standard_gamma(b_N.detach(), generator=generator)  # pyright: ignore[reportPrivateImportUsage]
    return (x_N / (x_N + y_N)).clamp(INTERIOR, 1 - INTERIOR)


def importance_weights(alpha_N: Tensor, then: tuple[Tensor, Tensor], now: tuple[Tensor, Tensor], limit: float = 2.0) -> Tensor:
    """min(limit, π_now(α) / π_then(α)), [N], without gradient: how much a decision of an older policy still says about this one.

    then, now: (a, b) of the policy that sampled α and of the present one.
    """
    log_ratio_N = log_prob(alpha_N, *now) - log_prob(alpha_N, *then)
    return log_ratio_N.detach().exp().clamp(max=limit)


def policy_loss(
    parameters: Parameters,
    state_NF: Tensor,
    alpha_N: Tensor,
    advantage_N: Tensor,
    entropy_target: float,
    entropy_coef: float,
    entropy_floor: float | None,
) -> Tensor:
    """−mean(A·log π_φ(α | s)) + c·mean(max(0, H[π_φ] − H_target)²), a scalar (ATESD, L_ctrl).

    entropy_floor adds c·mean(max(0, floor − H)²): the paper's one-sided term cannot stop a collapse.
    """
    a_N, b_N = concentrations(parameters, state_NF)
    entropy_N = entropy(a_N, b_N)
    loss = -(advantage_N * log_prob(alpha_N, a_N, b_N)).mean()
    loss = loss + entropy_coef * (entropy_N - entropy_target).clamp(min=0).square().mean()
    if entropy_floor is None:
        return loss
    return loss + entropy_coef * (entropy_floor - entropy_N).clamp(min=0).square().mean()


def _log_beta(a_N: Tensor, b_N: Tensor) -> Tensor:
    return torch.lgamma(a_N) + torch.lgamma(b_N) - torch.lgamma(a_N + b_N)
