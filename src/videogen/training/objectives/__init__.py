"""The one table from a recipe's options to its objective (section 3.5)."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from videogen import config
from videogen.training.objectives.base import Objective
from videogen.training.objectives.denoising import RefinerObjective, TextToImageObjective, VideoDiffusionObjective
from videogen.training.objectives.latent_flow import LatentFlowObjective
from videogen.training.objectives.reconstruction import AutoencoderObjective, VideoDecoderObjective
from videogen.training.objectives.text_encoder import TextEncoderObjective
from videogen.training.objectives.video_classifier import VideoClassifierObjective

__all__ = ["Objective", "build_objective"]

OBJECTIVES: dict[type, Any] = {
    config.TextEncoderOptions: TextEncoderObjective,
    config.AutoencoderOptions: AutoencoderObjective,
    config.TextToImageOptions: TextToImageObjective,
    config.VideoDiffusionOptions: VideoDiffusionObjective,
    config.LatentFlowOptions: LatentFlowObjective,
    config.RefinerOptions: RefinerObjective,
    config.VideoDecoderOptions: VideoDecoderObjective,
    config.VideoClassifierOptions: VideoClassifierObjective,
}


def build_objective(run: config.TrainConfig, output: Path) -> Objective:
    """The objective of a run. Folder names that begin with "." are taken relative to the run's output folder."""
    values = {item.name: getattr(run.options, item.name) for item in dataclasses.fields(run.options)}
    absolute: dict[str, Any] = {
        name: os.path.normpath(output / value)
        for name, value in values.items()
        if isinstance(value, str) and value.startswith(".")
    }
    objective: Objective = OBJECTIVES[type(run.options)](dataclasses.replace(run.options, **absolute))
    return objective
