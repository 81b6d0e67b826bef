"""What turns gradients into steps: AdamW, or Muon for the layers that are matrices (no section of the paper)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from videogen.config import OptimizerConfig

_ADAMW, _MUON = ("step", "exp_avg", "exp_avg_sq"), ("momentum_buffer",)  # the state of one parameter under each rule

_FORMATS = {2: torch.contiguous_format, 4: torch.channels_last}
_MOMENTUM = 0.95  # of Muon
_MATRIX = 32  # inputs and outputs that a layer needs for Muon; narrower ones (the first and the last) are left to AdamW


class Muon(torch.optim.Optimizer):
    """`torch.optim.Muon` with AdamW's sizes of steps, where all matrices of one shape are made orthogonal at once.

    Jordan et al. 2024 (momentum 0.95 with Nesterov's look ahead, five Newton-Schulz iterations) and Liu et al. 2025
    (the sizes). torch's own goes from matrix to matrix, which for mini's hundreds of small ones takes two and a half times as
    long (docs/log.md). `defaults` are `lr`, `weight_decay`, and `dtype`, in which the iterations multiply.
    """

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Change the parameters, all of them matrices (O, I), by their gradients."""
        alike: dict[torch.Size, list[tuple[Tensor, dict[str, Any]]]] = {}
        for group in self.param_groups:
            for item in group["params"]:
                if item.grad is not None:
                    alike.setdefault(item.shape, []).append((item, group))
        for shape, items in alike.items():
            ahead = torch.stack([self._look_ahead(item) for item, _ in items])
            for (item, group), change in zip(items, _orthogonal(ahead, self.defaults["dtype"]), strict=True):
                item.mul_(1 - group["lr"] * group["weight_decay"])
                item.add_(change, alpha=-group["lr"] * 0.2 * math.sqrt(max(shape)))

    def _look_ahead(self, item: Tensor) -> Tensor:
        state = self.state[item]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(item)
        momentum = state["momentum_buffer"].lerp_(item.grad, 1 - _MOMENTUM)
        return item.grad.lerp(momentum, _MOMENTUM)  # type: ignore[union-attr]


def _orthogonal(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, O, I) -> the same, with singular values of about one: the Newton-Schulz iterations of Jordan et al."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.to(dtype)
    x = x.mT if tall else x
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.mT if tall else x


class Optimizer:
    """One step for all parts of a network, each parameter by its rule.

    With `muon`, the weights of linear layers and convolutions that have at least 32 inputs and outputs take Muon's step (Jordan
    et al. 2024: momentum made orthogonal), a convolution as the matrix of its outputs by all else; it is scaled to the size of
    AdamW's (Liu et al. 2025), so one learning rate serves both. All else, and without `muon` everything, takes AdamW's.
    `factor` gives the share of the learning rate of a parameter's name. Muon multiplies in `dtype`; in bfloat16, as published,
    it takes many times as long as in float32 on a CPU that has no instructions for it (docs/log.md).
    """

    def __init__(
        self,
        options: OptimizerConfig,
        parts: Sequence[tuple[nn.Module, Callable[[str], float]]],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._matrices: dict[nn.Parameter, Tensor] = {}
        groups: dict[tuple[bool, float], list[Tensor]] = {}
        for part, factor in parts:
            wide = set(_wide_weights(part)) if options.name == "muon" else set()
            for name, item in part.named_parameters():
                if item.requires_grad:
                    if item in wide:
                        item.data = item.data.contiguous(memory_format=_FORMATS[item.ndim])
                        self._matrices[item] = _matrix(item.detach())
                    groups.setdefault((item in wide, factor(name)), []).append(self._matrices.get(item, item))
        common: dict[str, Any] = {"lr": options.learning_rate, "weight_decay": options.weight_decay}
        self._rules: list[torch.optim.Optimizer] = []
        for muon in (False, True):
            kind = [{"params": items, "factor": share} for (wanted, share), items in groups.items() if wanted is muon]
            if kind and muon:
                self._rules.append(Muon(kind, {**common, "dtype": dtype}))
            elif kind:
                self._rules.append(torch.optim.AdamW(kind, betas=options.betas, fused=True, **common))

    def step(self, learning_rate: float) -> None:
        """Change the parameters by their gradients, and forget these."""
        for item, matrix in self._matrices.items():
            matrix.grad = None if item.grad is None else _matrix(item.grad)
            item.grad = None
        for rule in self._rules:
            for group in rule.param_groups:
                group["lr"] = learning_rate * group["factor"]
            rule.step()
            rule.zero_grad(set_to_none=True)

    def moments(self, item: nn.Parameter) -> dict[str, Tensor]:
        """The state of a parameter, by name, for a checkpoint; empty if it has never had a gradient."""
        rule, key, names = self._of(item)
        known = rule.state.get(key, {})
        return {name: known[name] for name in names if name in known}

    def restore(self, item: nn.Parameter, saved: Mapping[str, Tensor], prefix: str) -> None:
        """Take what `moments` gave from `saved`, where `prefix` stands before its names; nothing if it is not there."""
        rule, key, names = self._of(item)
        if prefix + names[0] in saved:
            # Copied into tensors that torch has allocated: safetensors' own are unaligned, which changes the last bits.
            empty = {name: torch.zeros((), device=key.device) if name == "step" else torch.zeros_like(key) for name in names}
            rule.state[key] = {name: tensor.copy_(saved[prefix + name]) for name, tensor in empty.items()}

    def _of(self, item: nn.Parameter) -> tuple[torch.optim.Optimizer, Tensor, tuple[str, ...]]:
        if item in self._matrices:
            return self._rules[-1], self._matrices[item], _MUON
        return self._rules[0], item, _ADAMW


def _wide_weights(module: nn.Module) -> Iterator[Tensor]:
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and min(layer.weight.shape[:2]) >= _MATRIX:
            yield layer.weight


def _matrix(weight: Tensor) -> Tensor:
    """A linear layer's weight, or a convolution's (O, I, h, w) as (O, h*w*I): of channels_last the same memory."""
    return weight if weight.ndim == 2 else weight.permute(0, 2, 3, 1).flatten(1)
