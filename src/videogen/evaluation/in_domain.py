"""Section 4.1's three metrics on Diorama (ours), by small networks that `videogen train` makes of it.

They tell two trainings of mini apart. They are never comparable with the paper's: every result says `in_domain`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPModel

from videogen.config import UserError
from videogen.data.diorama import Diorama
from videogen.evaluation.features import Clip, FeatureSource, identify
from videogen.evaluation.videos import Sample, Sampling
from videogen.models.pretrained import frozen, load_network, load_tokenizer
from videogen.models.video_classifier import VideoClassifier
from videogen.stages.conditions import resize_frames
from videogen.training.objectives.text_encoder import storyboard

JUDGE, CLIP = "video_classifier", "text_encoder"
"""The runs below the folder of runs: of `mini/video_classifier` and of mini's own CLIP."""

TRUE_SEED = 1  # of the true clips: prompts are those of seed 0, so that no video is compared with its own clip


class DioramaFeatures(nn.Module):
    """The classifier up to its last layer: what in-domain FVD is made of."""

    def __init__(self, network: VideoClassifier) -> None:
        super().__init__()
        self.network = network
        self.side, self.frames = int(network.config["sample_size"]), int(network.config["num_frames"])
        self.dimensions = int(network.config["features"])
        self.resize = f"VideoClassifier: antialiased bilinear to {self.side}x{self.side}"

    def prepare(self, frames: Tensor) -> Tensor:
        """Frames uint8 (F, H, W, 3) of any size -> (F, 3, side, side) in [-1, 1]. Raises UserError on another number."""
        if len(frames) != self.frames:
            raise UserError(f"the in-domain network takes exactly {self.frames} frames, not {len(frames)}: --num-frames")
        return resize_frames(frames.permute(0, 3, 1, 2).float() / 127.5 - 1, (self.side, self.side))

    def forward(self, videos: Tensor) -> Tensor:
        """Videos (N, F, 3, side, side) -> features (N, D)."""
        features: Tensor = self.network(videos)
        return features


class DioramaClasses(DioramaFeatures):
    """What the classifier takes the object for, the classes of the in-domain Inception Score: colours times shapes.

    Each head's distribution is its own, so that of a pair is their product.
    """

    def __init__(self, network: VideoClassifier) -> None:
        super().__init__(network)
        self.dimensions = int(np.prod([network.config["classes"][name] for name in ("colour", "shape")]))

    def forward(self, videos: Tensor) -> Tensor:
        """Videos (N, F, 3, side, side) -> log-probabilities (N, colours * shapes)."""
        scores = self.network.classify(super().forward(videos))
        colour, shape = (scores[name].log_softmax(1) for name in ("colour", "shape"))
        return (colour[:, :, None] + shape[:, None, :]).flatten(1)


class StoryboardClip(Clip):
    """Mini's own CLIP. Its picture is four frames of a video, evenly spaced, as 2x2: unlike the paper's, it sees motion."""

    resize = "mini's CLIP: antialiased bilinear, four frames as 2x2"

    @torch.inference_mode()
    def images(self, frames: np.ndarray) -> np.ndarray:
        """The frames of one video uint8 (F, H, W, 3), F >= 4 -> its features (1, D), float64, not scaled. Raises UserError."""
        if len(frames) < 4:
            raise UserError(f"the in-domain CLIPSIM needs at least 4 frames, not {len(frames)}: --num-frames")
        chosen = torch.from_numpy(np.ascontiguousarray(frames[:: len(frames) // 4][:4])).to(self.model.device)
        picture = storyboard(chosen.permute(0, 3, 1, 2).float()[None] / 127.5 - 1, self.side // 2)
        pooled = self.model.vision_model(pixel_values=picture).pooler_output
        return np.asarray(self.model.visual_projection(pooled).double().cpu())


@dataclass(frozen=True)
class Judges:
    """The networks, and where each came from."""

    features: DioramaFeatures
    classes: DioramaClasses
    clip: StoryboardClip
    judge_source: FeatureSource
    clip_source: FeatureSource


def load_judges(runs: Path, device: torch.device) -> Judges:
    """From the folder of runs (runs/mini) in which `mini/video_classifier` and `mini/text_encoder` were trained.

    Raises UserError, naming the recipe that is missing.
    """
    for name in (JUDGE, CLIP):
        if not (runs / name / "network").is_dir():
            raise UserError(f"{runs} has no {name}/network: videogen train mini/{name} -o {runs / name}")
    network = frozen(load_network(VideoClassifier, runs / JUDGE / "network")).to(device)
    model = frozen(load_network(CLIPModel, runs / CLIP / "network")).to(device)
    clip = StoryboardClip(model, load_tokenizer(runs)).requires_grad_(False).eval()
    sources = [
        identify(f"diorama-{name}", runs / name / "network" / file, in_domain=True)
        for name, file in ((JUDGE, "diffusion_pytorch_model.safetensors"), (CLIP, "model.safetensors"))
    ]
    return Judges(DioramaFeatures(network), DioramaClasses(network), clip, *sources)


class TrueClips:
    """Clips of Diorama's held-out triples as videos to be measured: the real side of in-domain FVD.

    fps: of the frames. None of them shows what a prompt of `Diorama(split="held_out")` with seed 0 asks for but by chance.
    """

    skip_bad = False
    folder = Path("Diorama")

    def __init__(self, sampling: Sampling, fps: float, count: int) -> None:
        if sampling.size is None or sampling.num_frames is None:
            raise UserError("true clips need a number of frames and a size: --num-frames, --size")
        self.world = Diorama(sampling.size, sampling.num_frames, (fps,), seed=TRUE_SEED, split="held_out")
        self.sampling = Sampling(sampling.num_frames, 1, sampling.size)
        self.names = [f"Diorama held out, seed {TRUE_SEED}, {fps:g} fps, clip {index}" for index in range(count)]
        self.skipped: list[tuple[str, str]] = []
        self.sizes: Counter[str] = Counter()
        self.rates: Counter[float | None] = Counter()

    def __len__(self) -> int:
        return len(self.names)

    def samples(self, rank: int = 0, ranks: int = 1) -> Iterator[Sample]:
        """Those of one rank: every `ranks`-th, drawn one at a time."""
        for index in range(rank, len(self.names), ranks):
            clip = self.world.clip(index)
            yield Sample(index, self.names[index], clip.frames, clip.fps, f"{self.world.size}x{self.world.size}")
