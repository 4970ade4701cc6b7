"""FLOPs of the CPU's attention kernels, and of products added in place, against arithmetic."""

import pytest
import torch
from torch.nn import functional as F

from benchmarks.flop_counter import flop_counter

HEADS, TOKENS, FEATURES = 3, 40, 16
PAIRS = HEADS * TOKENS * TOKENS


@pytest.mark.parametrize(("is_causal", "pairs"), [(False, PAIRS), (True, PAIRS // 2)])
def test_attention_counts_two_products_forward_and_five_backward(is_causal, pairs):
    q, k, v = (torch.randn(1, HEADS, TOKENS, FEATURES, requires_grad=True) for _ in range(3))
    with flop_counter() as counter:
        output = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
    assert counter.get_total_flops() == 2 * 2 * pairs * FEATURES
    with flop_counter() as counter:
        output.sum().backward()
    assert counter.get_total_flops() == 5 * 2 * pairs * FEATURES


def test_a_product_that_is_added_in_place_counts_as_any_other():
    left, right, added = torch.randn(5, 7), torch.randn(7, 11), torch.zeros(5, 11)
    with flop_counter() as counter:
        added.addmm_(left, right)
    assert counter.get_total_flops() == 2 * 5 * 7 * 11
