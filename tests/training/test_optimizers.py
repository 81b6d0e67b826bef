"""Steps from gradients: what Muon takes, what it leaves to AdamW, and how large its steps are."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer import assert_equal, interrupt_after, state
from torch import nn
from toy import Denoise, ToyClips, recipe

from videogen.config import OptimizerConfig
from videogen.training.optimizers import Muon, Optimizer
from videogen.training.trainer import run

RATE = 0.01


class Layers(nn.Module):
    """A convolution and a linear layer wide enough for Muon, and ones that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 48, 3)
        self.inner = nn.Conv2d(48, 32, 3)
        self.words = nn.Embedding(64, 32)
        self.linear = nn.Linear(32, 64)
        self.last = nn.Linear(64, 4)


def changes(name: str) -> dict[str, torch.Tensor]:
    """What one step at RATE, without weight decay, adds to each parameter for random gradients."""
    torch.manual_seed(0)
    layers = Layers()
    options = OptimizerConfig(name=name, learning_rate=RATE, weight_decay=0.0)  # type: ignore[arg-type]
    optimizer = Optimizer(options, [(layers, lambda name: 0.5 if name.startswith("linear") else 1.0)])
    before = {name: item.detach().clone() for name, item in layers.named_parameters()}
    for item in layers.parameters():
        item.grad = torch.randn(item.shape)
    optimizer.step(RATE)
    assert all(item.grad is None for item in layers.parameters())
    return {name: item.detach() - before[name] for name, item in layers.named_parameters()}


def test_muon_makes_the_steps_of_wide_layers_orthogonal_and_leaves_the_others_to_adamw() -> None:
    muon, adamw = changes("muon"), changes("adamw")
    for name, change in muon.items():
        if name in ("inner.weight", "linear.weight"):
            values = torch.linalg.svdvals(change.flatten(1))
            assert values.max() / values.min() < 2  # of the random gradients themselves: 4 and 5
        else:
            torch.testing.assert_close(change, adamw[name], rtol=0, atol=0)


@pytest.mark.parametrize(("name", "share"), [("inner.weight", 1.0), ("linear.weight", 0.5)])
def test_both_rules_take_steps_of_one_size(name: str, share: float) -> None:
    sizes = [changes(rule)[name].square().mean().sqrt().item() for rule in ("adamw", "muon")]
    assert sizes[0] == pytest.approx(share * RATE, rel=1e-3)
    assert 0.1 * sizes[0] < sizes[1] < sizes[0]  # Liu et al. aim at the 0.2 that AdamW has in practice


def test_matrices_of_one_shape_together_take_the_steps_of_torch_one_by_one() -> None:
    shapes = [(40, 64), (64, 40), (40, 64), (40, 64), (64, 40)]
    after = []
    for rule in (Muon, torch.optim.Muon):
        torch.manual_seed(0)
        items = [nn.Parameter(torch.randn(shape)) for shape in shapes]
        groups: list[dict[str, Any]] = [{"params": items[:3], "lr": 0.1}, {"params": items[3:], "lr": 0.2}]
        if rule is Muon:
            optimizer: torch.optim.Optimizer = Muon(groups, {"lr": 0.1, "weight_decay": 0.1, "dtype": torch.bfloat16})
        else:
            optimizer = torch.optim.Muon(groups, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        for step in range(3):
            for index, item in enumerate(items):
                item.grad = None if (step, index) == (1, 0) else torch.randn(item.shape)
            optimizer.step()
        after.append(items)
    for ours, theirs in zip(*after, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)  # of steps of 0.02 to 0.05, in bfloat16


def test_a_run_with_muon_that_was_interrupted_equals_one_that_was_not(tmp_path: Path) -> None:
    def task() -> dict[str, Any]:
        torch.manual_seed(2)
        return {"adversary": True, "middle": nn.Conv2d(32, 32, 3, padding=1)}

    options = OptimizerConfig(name="muon", learning_rate=0.01, warmup_steps=2)
    config = dataclasses.replace(recipe(), network={"width": 32}, optimizer=options)
    interrupt_after(3, tmp_path / "parts", config, **task())
    for folder in ("whole", "parts"):
        parts = task()
        torch.manual_seed(1)
        run(config, Denoise(**parts), ToyClips(), tmp_path / folder)
    whole = state(tmp_path / "whole", 6)
    assert [name for name in whole if name.endswith("momentum_buffer")] == ["optimizer/network.drop.weight.momentum_buffer"]
    assert_equal(state(tmp_path / "parts", 6), whole)
