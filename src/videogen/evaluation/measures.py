"""The metrics of section 4.1 as streams over samples: each takes videos in batches, and its state can be saved and joined.

State does not grow with the number of samples, and does not depend on batches or on how samples were shared among processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from videogen.config import UserError
from videogen.evaluation.clip_similarity import clip_similarity
from videogen.evaluation.features import Clip, FeatureSource, VideoNetwork, video_features
from videogen.evaluation.fidelity import dis_flows, motion_amount, reference_fidelity, warping_error
from videogen.evaluation.frechet_video_distance import frechet_distance, frechet_interval, noise_floor, rank_deficient
from videogen.evaluation.inception_score import InceptionScore, softmax
from videogen.evaluation.statistics import GROUPS, GroupedMoments, mean_interval
from videogen.evaluation.videos import IMAGE_SUFFIXES, Sample, Sampling
from videogen.video import read_image

State = dict[str, np.ndarray]


@dataclass(frozen=True)
class Number:
    """What a measure says in the end; `run.conclude` makes a Result of it. protocol: enters the fingerprint."""

    metric: str
    value: float
    spread: float | None
    interval: tuple[float, float] | None
    source: FeatureSource | None = None
    resize: str = ""
    protocol: Mapping[str, Any] | None = None
    details: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()

    @property
    def in_domain(self) -> bool:
        return self.source is not None and self.source.in_domain


class Measure(Protocol):
    """A metric over a stream of samples. name: of its state in a file."""

    name: str

    def add(self, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
        """Take in a batch; returns what there is to say of each sample alone: name -> (N,)."""
        ...

    def state(self) -> State: ...

    def merge(self, state: State) -> None:
        """As if what another process saw had been added here."""
        ...

    def numbers(self) -> list[Number]: ...


class Inception:
    """Inception Score. spread: the deviation over ten splits, as the paper's with C3D; in-domain there is one split, and none.

    One, since sets are small there (some hundred videos), and a split's score cannot exceed its videos.
    """

    def __init__(self, network: VideoNetwork, source: FeatureSource) -> None:
        self.network, self.source = network, source
        self.name = metric_name("inception_score", source)
        self.score = InceptionScore(network.dimensions, 1 if source.in_domain else 10)

    def add(self, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
        probabilities = softmax(video_features(self.network, [sample.frames for sample in samples]))
        self.score.add(probabilities, _indices(samples))
        return {"likeliest_class": probabilities.argmax(1)}

    def state(self) -> State:
        return self.score.state()

    def merge(self, state: State) -> None:
        self.score.merge(InceptionScore.from_state(state))

    def numbers(self) -> list[Number]:
        mean, deviation = self.score.value()
        count, splits = self.score.count, self.score.splits
        of = f"{count} videos in {splits} splits" if splits > 1 else f"{count} videos"
        warning = f"IS is biased low: {of}, whose number in a split it cannot exceed"
        warnings = (warning,) if count < 10 * self.network.dimensions * splits else ()
        return [
            Number(
                self.name, mean, deviation if splits > 1 else None, self.score.interval(), self.source, self.network.resize,
                {"splits": splits}, {"samples_a_split": count / splits}, warnings,
            )
        ]  # fmt: skip


class VideoMoments:
    """Moments of features, I3D's or an in-domain network's: one side of FVD."""

    name = "fvd"

    def __init__(self, network: VideoNetwork, source: FeatureSource) -> None:
        self.network, self.source = network, source
        self.moments = GroupedMoments(network.dimensions)

    def add(self, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
        self.moments.add(video_features(self.network, [sample.frames for sample in samples]), _indices(samples))
        return {}

    def state(self) -> State:
        return self.moments.state()

    def merge(self, state: State) -> None:
        self.moments.merge(GroupedMoments.from_state(state))

    def numbers(self) -> list[Number]:
        return []


@dataclass(frozen=True)
class RealVideos:
    """The other side of FVD. identity: what the set is, for the fingerprint."""

    moments: GroupedMoments
    identity: Mapping[str, Any]


class Frechet(VideoMoments):
    """FVD against real videos. spread: the deviation over resamplings of both sets."""

    def __init__(self, network: VideoNetwork, source: FeatureSource, real: Callable[[], RealVideos]) -> None:
        super().__init__(network, source)
        self.real = real

    def numbers(self) -> list[Number]:
        real = self.real()
        ours, theirs = self.moments.whole(), real.moments.whole()
        distance = frechet_distance(ours, theirs)
        spread, interval = frechet_interval(self.moments, real.moments)
        floors = {
            f"noise_floor_of_{whose}": noise_floor(moments) if moments.count >= 2 * GROUPS else None
            for whose, moments in (("these", self.moments), ("real", real.moments))
        }
        few = [
            f"FVD is rank-deficient: {count} {whose} videos for {len(ours.mean)} dimensions, mostly bias"
            for whose, count in (("of these", ours.count), ("real", theirs.count))
            if rank_deficient(count, len(ours.mean))
        ]
        details = {**floors, "real_videos": theirs.count, "rank_deficient": bool(few)}
        protocol = {"real": dict(real.identity)}
        return [
            Number(
                metric_name("frechet_video_distance", self.source), distance, spread, interval, self.source,
                self.network.resize, protocol, details, tuple(few),
            )
        ]  # fmt: skip


class _Means:
    """Numbers of which each sample has one, and whose mean is the result: name -> GroupedMoments(1)."""

    name = ""
    metrics: tuple[str, ...] = ()
    lowest = -math.inf  # that any of them can be

    def __init__(self) -> None:
        self.moments = {metric: GroupedMoments(1) for metric in self.metrics}

    def take(self, samples: Sequence[Sample], values: Mapping[str, Sequence[float] | np.ndarray]) -> dict[str, np.ndarray]:
        found = {metric: np.asarray(values[metric], np.float64) for metric in self.metrics}
        for metric, column in found.items():
            self.moments[metric].add(column[:, None], _indices(samples))
        return found

    def state(self) -> State:
        return {f"{metric}.{key}": value for metric in self.metrics for key, value in self.moments[metric].state().items()}

    def merge(self, state: State) -> None:
        for metric in self.metrics:
            start = f"{metric}."
            part = {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
            self.moments[metric].merge(GroupedMoments.from_state(part))

    def mean(self, metric: str, **rest: Any) -> Number:
        """spread: the standard deviation over samples."""
        moments = self.moments[metric]
        whole = moments.whole()
        several = whole.count > 1
        deviation = float(np.sqrt(whole.covariance[0, 0])) if several else None
        low, high = mean_interval(moments) if several else (0.0, 0.0)
        interval = (max(self.lowest, low), high) if several else None
        return Number(metric, float(whole.mean[0]), deviation, interval, **rest)


class ClipSimilarity(_Means):
    """CLIPSIM: mean over frames and videos of the cosine between frame (in-domain: storyboard) and prompt."""

    name = "clip"

    def __init__(self, network: Clip, source: FeatureSource, prompt: Callable[[int], str]) -> None:
        self.metrics = (metric_name("clip_similarity", source),)
        super().__init__()
        self.network, self.source, self.prompt = network, source, prompt

    def add(self, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
        texts = self.network.texts([self.prompt(sample.index) for sample in samples])
        images = [self.network.images(sample.frames) for sample in samples]
        scores = [clip_similarity(image[None], text[None])[0] for image, text in zip(images, texts, strict=True)]
        return self.take(samples, {self.metrics[0]: scores})

    def numbers(self) -> list[Number]:
        return [self.mean(self.metrics[0], source=self.source, resize=self.network.resize)]


class Steadiness(_Means):
    """How much the videos move, and how much they flicker: a frozen or a flickering one cannot hide. Flow is DIS's."""

    name = "steadiness"
    metrics = ("motion_flow", "motion_change", "still_share", "warping_error")
    lowest = 0.0

    def add(self, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
        values: dict[str, list[float]] = {metric: [] for metric in self.metrics}
        for sample in samples:
            if sample.fps is None:
                raise UserError(f"{sample.name} does not say how many frames a second it has: give --fps")
            forward, backward = dis_flows(sample.frames), dis_flows(sample.frames[::-1])[::-1]
            motion = motion_amount(sample.frames, sample.fps, forward)
            values["motion_flow"].append(motion.flow)
            values["motion_change"].append(motion.change)
            values["still_share"].append(motion.still)
            values["warping_error"].append(warping_error(sample.frames, forward, backward))
        return self.take(samples, values)

    def numbers(self) -> list[Number]:
        return [self.mean(metric, protocol={"flow": "DIS medium"}) for metric in self.metrics]


class ReferenceFidelity(_Means):
    """The first frame against the reference image that the video was made from (section 3.1)."""

    name = "reference"
    metrics = ("reference_psnr", "reference_ssim")

    def __init__(self, folder: Path, sampling: Sampling) -> None:
        super().__init__()
        self.folder, self.sampling = folder, sampling

    def add(self, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
        found = [reference_fidelity(sample.frames, self._reference(sample)) for sample in samples]
        return self.take(samples, {f"reference_{key}": [each[key] for each in found] for key in ("psnr", "ssim")})

    def _reference(self, sample: Sample) -> np.ndarray:
        picture = read_image(self._path(sample.name))
        height, width = sample.frames.shape[1:3]
        if self.sampling.size is None and picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        return self.sampling.square(picture)

    def _path(self, name: str) -> Path:
        for stem in (Path(name).with_suffix(""), Path(name)):
            for suffix in sorted(IMAGE_SUFFIXES):
                path = self.folder / f"{stem}{suffix}"
                if path.is_file():
                    return path
        raise UserError(f"{self.folder} has no reference image for {name}: expected {Path(name).with_suffix('.png')}")

    def numbers(self) -> list[Number]:
        return [self.mean(metric) for metric in self.metrics]


def metric_name(name: str, source: FeatureSource) -> str:
    """Of a metric by these weights: in-domain ones have a name of their own, in files and tables."""
    return f"in_domain_{name}" if source.in_domain else name


def _indices(samples: Sequence[Sample]) -> list[int]:
    return [sample.index for sample in samples]
