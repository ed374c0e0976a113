"""The Beta policy: where it starts, that its formulas are Beta's, that sampling is the generator's alone."""

import pytest
import torch

from megatron_atesd.exposure import policy

A_N = torch.tensor([1.2, 1.693, 4.0, 9.0], dtype=torch.float64)
B_N = torch.tensor([3.0, 1.693, 2.5, 1.1], dtype=torch.float64)
ALPHA_N = torch.tensor([0.1, 0.5, 0.7, 0.99], dtype=torch.float64)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_fresh_policy_is_neutral_in_every_state():
    a_N, b_N = policy.concentrations(policy.init_parameters(6, 32, generator(3)), torch.randn(5, 6, generator=generator(4)).double())
    expected_N = torch.full((5,), 1.6931471805599454, dtype=torch.float64)
    torch.testing.assert_close(a_N, expected_N, rtol=0, atol=1e-12)
    torch.testing.assert_close(b_N, expected_N, rtol=0, atol=1e-12)


def test_concentrations_stay_above_one_however_large_the_weights():
    parameters = {name: value.detach() * 0 - 50 for name, value in policy.init_parameters(6, 4, generator(1)).items()}
    a_N, b_N = policy.concentrations(parameters, torch.zeros(1, 6, dtype=torch.float64))
    assert a_N.item() >= 1
    assert b_N.item() >= 1


def test_log_prob_and_entropy_are_those_of_the_beta_distribution():
    reference = torch.distributions.Beta(A_N, B_N)
    torch.testing.assert_close(policy.log_prob(ALPHA_N, A_N, B_N), reference.log_prob(ALPHA_N))
    torch.testing.assert_close(policy.entropy(A_N, B_N), reference.entropy())


@pytest.mark.parametrize(("a", "b"), [(1.693, 1.693), (6.0, 2.0)])
def test_samples_have_the_mean_and_variance_of_the_beta_distribution(a: float, b: float):
    count = 20_000
    alpha_N = policy.sample(torch.full((count,), a, dtype=torch.float64), torch.full((count,), b, dtype=torch.float64), generator(0))
    reference = torch.distributions.Beta(torch.tensor(a), torch.tensor(b))
    assert alpha_N.mean().item() == pytest.approx(reference.mean.item(), abs=0.008)  # four standard errors of the widest
    assert alpha_N.var().item() == pytest.approx(reference.variance.item(), rel=0.05)


def test_sampling_depends_on_its_generator_alone():
    torch.manual_seed(1)
    first_N = policy.sample(A_N, B_N, generator(7))
    torch.manual_seed(2)
    assert torch.equal(policy.sample(A_N, B_N, generator(7)), first_N)
    assert not torch.equal(policy.sample(A_N, B_N, generator(8)), first_N)


def test_the_global_rng_is_never_touched():
    before = torch.get_rng_state()
    policy.sample(A_N, B_N, generator(7))
    policy.init_parameters(6, 32, generator(7))
    assert torch.equal(torch.get_rng_state(), before)


def test_policy_loss_is_reinforce_plus_the_entropy_penalties():
    parameters = policy.init_parameters(6, 4, generator(1))
    state_NF = torch.zeros(4, 6, dtype=torch.float64)
    advantage_N = torch.tensor([1.0, -1.0, 0.5, 0.0], dtype=torch.float64)
    start = torch.distributions.Beta(torch.tensor(1.6931471805599454).double(), torch.tensor(1.6931471805599454).double())
    entropy = start.entropy().item()  # −0.077
    reinforce = -(advantage_N * start.log_prob(ALPHA_N)).mean().item()
    above = policy.policy_loss(parameters, state_NF, ALPHA_N, advantage_N, entropy - 0.3, 2.0, None).item()
    below = policy.policy_loss(parameters, state_NF, ALPHA_N, advantage_N, entropy + 0.3, 2.0, entropy + 0.2).item()
    assert above == pytest.approx(reinforce + 2.0 * 0.3**2)
    assert below == pytest.approx(reinforce + 2.0 * 0.2**2)


def test_importance_weights_are_density_ratios_cut_at_the_limit():
    then = (torch.tensor([2.0, 2.0]).double(), torch.tensor([1.0, 1.0]).double())  # density 2α
    now = (torch.tensor([3.0, 1.0]).double(), torch.tensor([1.0, 1.0]).double())  # 3α², and 1
    weight_N = policy.importance_weights(torch.tensor([0.4, 0.1]).double(), then, now, limit=2.0)
    torch.testing.assert_close(weight_N, torch.tensor([0.6, 2.0]).double())  # the second would be 5
