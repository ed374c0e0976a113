"""The product of generation against float64."""

import pytest
import torch

from megatron_atesd.model.products import product


@pytest.mark.parametrize("tokens", [1, 7, 64])
@pytest.mark.parametrize("sizes", [(96, 52), (384, 32768)], ids=["small", "large"])
def test_a_product_is_the_exact_one_to_fp32_precision(tokens: int, sizes: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(tokens)
    x_TI, weight_OI = torch.randn(tokens, sizes[0], generator=generator), torch.randn(sizes[1], sizes[0], generator=generator)
    exact_TO = x_TI.double() @ weight_OI.double().T
    scale_TO = x_TI.double().abs() @ weight_OI.double().abs().T  # of what is summed
    assert ((product(x_TI, weight_OI) - exact_TO).abs() / scale_TO).max() < 1e-6


def test_a_product_of_rows_with_gaps_is_that_of_their_copy() -> None:
    x_TI, weight_OI = torch.randn(64, 512), torch.randn(4096, 512)
    torch.testing.assert_close(
        product(x_TI[::2, :256], weight_OI[1000:, 256:]), x_TI[::2, :256] @ weight_OI[1000:, 256:].T, rtol=0, atol=1e-4
    )


def test_bf16_stays_bf16() -> None:
    x_TI, weight_OI = torch.randn(64, 512).bfloat16(), torch.randn(4096, 512).bfloat16()
    assert product(x_TI, weight_OI).dtype == torch.bfloat16
