"""A tiny real task for the trainer's tests: a convolution learns to undo noise, with or without a critic beside it.

Run as a script it trains in the folder that it is given: python toy.py FOLDER key=value ...
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from videogen.config import OptimizerConfig, TrainConfig, parse_train_config
from videogen.data.clips import Clip, ClipBatch, ReadyBatch
from videogen.models.adapters import NetworkAdapters
from videogen.training.objectives import Objective
from videogen.training.trainer import run


class ToyNetwork(ModelMixin, ConfigMixin, NetworkAdapters):
    @register_to_config
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.drop = nn.Dropout(0.1)
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, frames: Tensor) -> Tensor:  # (N, 3, H, W)
        return self.last(self.drop(torch.tanh(self.first(frames))))


class Denoise(Objective):
    """The adversary counts from step 2 on, so that its parameters have no gradient at first. middle: in place of dropout."""

    def __init__(
        self,
        *,
        adversary: bool = False,
        dropout: bool = True,
        middle: nn.Module | None = None,
        pause: float = 0.0,
        explode_at: int = -1,
    ) -> None:
        self.companion = nn.Conv2d(3, 1, 3) if adversary else None
        self.middle = middle if dropout else nn.Identity()
        self.pause, self.explode_at = pause, explode_at

    def build(self, network: Mapping[str, Any]) -> nn.Module:
        built = ToyNetwork(**network)
        if self.middle is not None:
            built.drop = self.middle
        return built

    def ready(self, clips: ClipBatch, generators: list[torch.Generator]) -> ReadyBatch:
        noise = torch.stack([torch.randn(clips.frames.shape[1:], generator=generator) for generator in generators])
        noisy = clips.frames + 0.3 * noise.to(clips.frames)
        return ReadyBatch({"clean": clips.frames, "noisy": noisy, "fps": clips.fps}, clips.captions)

    def loss(
        self, network: nn.Module, clips: ClipBatch, generators: list[torch.Generator], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.ready_loss(network, self.ready(clips, generators), generators, step)

    def ready_loss(
        self, network: nn.Module, ready: ReadyBatch, generators: list[torch.Generator], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        time.sleep(self.pause)
        clean = ready.parts["clean"].flatten(0, 1)
        made = network(ready.parts["noisy"].flatten(0, 1))
        error = (made - clean).square().mean()
        loss = error * (torch.nan if step == self.explode_at else 1.0)
        if self.companion is not None and step >= 2:
            loss = loss + self.companion(made.detach()).mean() - self.companion(clean).mean()
        return loss, {"error": error}

    def preview(self, network: nn.Module, clips: ClipBatch, generators: list[torch.Generator]) -> Tensor:
        return network(clips.frames.flatten(0, 1)).unflatten(0, clips.frames.shape[:2])


class ToyClips:
    """A finite source: `count` clips of two 8x8 frames."""

    def __init__(self, count: int = 7) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def clip(self, index: int) -> Clip:
        chance = np.random.default_rng(index)
        flow = chance.standard_normal((2, 2, 2, 8, 8), dtype=np.float32)
        return Clip(
            chance.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8),
            f"clip {index}",
            4.0 + index,
            flow,
            paraphrases=("again",) * (index % 2),
        )


def recipe(**changes: Any) -> TrainConfig:
    """Six steps of four clips; `changes` to the data and the loop by their names."""
    table = {
        "objective": "autoencoder",
        "network": {"width": 4},
        "data": {"crop": 6, "workers": 0},
        "loop": {"steps": 6, "batch_size": 4, "save_every": 2, "log_every": 1, "threads": 1, "device": "cpu"},
    }
    config = parse_train_config(table, "toy")
    data = {key: value for key, value in changes.items() if hasattr(config.data, key)}
    loop = {key: value for key, value in changes.items() if key not in data}
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, **data),
        loop=dataclasses.replace(config.loop, **loop),
        optimizer=OptimizerConfig(learning_rate=0.01, warmup_steps=2),
    )


if __name__ == "__main__":
    settings = {key: json.loads(value) for key, value in (item.split("=") for item in sys.argv[2:])}
    task = {key: settings.pop(key) for key in ("adversary", "dropout", "pause") if key in settings}
    torch.manual_seed(1)
    run(recipe(**settings), Denoise(**task), ToyClips(), Path(sys.argv[1]))
