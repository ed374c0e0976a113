"""Every version of megatron.core computes the same step, to the last bit."""

import pytest
import torch

from megatron_atesd.faults.state import differences
from tests.support.version_steps import LAYOUTS, stepped
from tests.support.versions import ALL, MARKS, OTHERS, Lab, Version

pytestmark = MARKS


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_loss_and_every_gradient_are_the_same(lab: Lab, other: Version, layout: str) -> None:
    for rank in range(LAYOUTS[layout].processes):
        found, expected = (torch.load(lab.of(version, stepped) / f"{layout}, {rank}") for version in (other, ALL[0]))
        assert differences(found, expected) == []
        assert expected["loss"] > 0
        assert all(value.any() for value in expected.values() if isinstance(value, torch.Tensor))
