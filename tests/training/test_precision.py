"""What bfloat16 means on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from videogen.training.precision import precision_of


def test_bfloat16_on_a_cpu_multiplies_in_bfloat16_and_attends_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 4, 16, 8, generator=generator, requires_grad=True) for _ in range(3))
    mask = torch.randn(16, 16, generator=generator)
    exact = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    with precision_of("bfloat16", torch.device("cpu")):
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        product = query @ key.transpose(-1, -2)
    assert mixed.dtype == product.dtype == torch.bfloat16
    assert mixed.equal(exact.bfloat16())  # all of it in float32, rounded once
    mixed.float().sum().backward()
    assert query.grad is not None
    assert query.grad.dtype == torch.float32
    with precision_of("float32", torch.device("cpu")):
        assert F.scaled_dot_product_attention(query, key, value, attn_mask=mask).equal(exact)
