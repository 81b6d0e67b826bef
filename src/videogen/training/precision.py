"""The precision of a training step's forward pass: `loop.precision`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


@contextlib.contextmanager
def precision_of(name: str, device: torch.device) -> Iterator[None]:
    """The precision of forward passes: "float32", or "bfloat16" by autocast (weights and what needs it stay float32)."""
    half = name == "bfloat16"
    attention = _FloatAttention() if half and device.type == "cpu" else contextlib.nullcontext()
    with torch.autocast(device.type, torch.bfloat16, enabled=half), attention:
        yield


class _FloatAttention(TorchFunctionMode):
    """Attention in float32 inside bfloat16, for CPUs: its backward pass in bfloat16 takes 3 to 13 times as long there."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)

        def wide(value: Any) -> Any:
            return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value

        with torch.autocast("cpu", enabled=False):
            mixed = func(*map(wide, args), **{name: wide(value) for name, value in kwargs.items()})
        return mixed.to(torch.bfloat16)
