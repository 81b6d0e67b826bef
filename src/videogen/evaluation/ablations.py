"""The paper's ablations on any pipeline folder: Table 3 (reference), Figure 6 (temporal super-resolution), Figure 7 (decoder).

Each writes table.md, frames.png (methods below one another) and results/METHOD.METRIC.json into its output folder.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from videogen.config import UserError
from videogen.data.clips import Clip, collate
from videogen.data.degradation import degrade
from videogen.data.diorama import Diorama
from videogen.data.loader import derive_seed
from videogen.evaluation.evaluate import Request, evaluate
from videogen.evaluation.features import identify
from videogen.evaluation.fidelity import dis_flows, psnr, ssim, warping_error
from videogen.evaluation.pictures import Rows, side_by_side, spread, table, write_picture, write_text
from videogen.evaluation.production import VIDEOS, Team
from videogen.evaluation.result import Result, fingerprint
from videogen.evaluation.run import REAL
from videogen.evaluation.statistics import GroupedMoments, mean_interval
from videogen.evaluation.videos import Sampling, VideoFolderSamples
from videogen.models.lpips import FILES as LPIPS_FILES
from videogen.models.lpips import LPIPS, load_lpips
from videogen.pipeline import DEFAULT_STEPS, VideoGenPipeline, to_uint8
from videogen.stages import temporal_super_resolution as tsr
from videogen.stages.conditions import decode_frames, encode_frames
from videogen.stages.decoding import decode_video

Say = Callable[[str], None]
SHOWN = 3  # clips in the picture
REFINED = " + refiner"


@dataclass(frozen=True)
class ClipChoice:
    """True clips: Diorama's held-out ones, or a folder of real videos. count: of Diorama; None: all videos of the folder.

    size: side in pixels; fps: of Diorama's clips, and of videos that do not say theirs; stride, start: of the folder's videos.
    """

    source: str
    num_frames: int
    size: int
    count: int | None = None
    fps: float = 8.0
    stride: int = 1
    start: int = 0
    seed: int = 0
    skip_bad: bool = False

    def clips(self) -> tuple[int, Iterator[tuple[int, Clip]], list[tuple[str, str]]]:
        """(how many, index and clip, the list in which skipped ones appear). Raises UserError."""
        if self.source == "diorama":
            world = Diorama(self.size, self.num_frames, (self.fps,), seed=self.seed, split="held_out")
            return self.count or 24, ((index, world.clip(index)) for index in range(self.count or 24)), []
        sampling = Sampling(self.num_frames, self.stride, self.size, self.start)
        videos = VideoFolderSamples(Path(self.source), sampling, self.skip_bad, fps=self.fps)
        videos.names = videos.names[: self.count]
        samples = videos.samples()
        clips = ((each.index, Clip(each.frames, each.name, each.fps or self.fps)) for each in samples)
        return len(videos), clips, videos.skipped

    def describe(self) -> dict[str, Any]:
        """For the fingerprint."""
        about = dataclasses.asdict(self)
        return {**about, "source": self.source if self.source == "diorama" else "folder"}


@dataclass
class Scores:
    """What each method reached on each clip: (method, metric) -> moments over clips."""

    moments: dict[tuple[str, str], GroupedMoments] = field(default_factory=dict)
    captions: list[str] = field(default_factory=list)

    def add(self, method: str, index: int, values: Mapping[str, float]) -> None:
        for metric, value in values.items():
            self.moments.setdefault((method, metric), GroupedMoments(1)).add(np.array([[value]]), [index])


@dataclass(frozen=True)
class Distances:
    """Frames against the true ones: PSNR, SSIM, and LPIPS where its weights are given."""

    lpips: LPIPS | None = None
    weights: str | None = None

    @classmethod
    def load(cls, folder: Path | None, device: torch.device) -> Distances:
        if folder is None:
            return cls()
        weights = " ".join(identify("lpips", folder / name).sha256 for name in LPIPS_FILES.values())
        return cls(load_lpips(folder).to(device), weights)

    def between(self, frames: Tensor, truth: Tensor) -> dict[str, float]:
        """Means over frames (N, 3, H, W) in [-1, 1]; PSNR and SSIM of what is seen, 8 bits."""
        seen, true = to_uint8(frames), to_uint8(truth)
        found = {
            "psnr": float(np.mean([psnr(a, b) for a, b in zip(seen, true, strict=True)])),
            "ssim": float(np.mean([ssim(a, b) for a, b in zip(seen, true, strict=True)])),
        }
        if self.lpips is not None:
            found["lpips"] = float(
                torch.cat([self.lpips(a, b) for a, b in zip(frames.split(4), truth.split(4), strict=True)]).mean()
            )
        return found


# Figure 6


@torch.inference_mode()
def interpolate(pipe: VideoGenPipeline, clip: Clip, index: int, seed: int) -> dict[str, Tensor]:
    """The middle frames (N-1, 3, H, W) of a clip of 2N-1 frames, made from the other N in each way; [-1, 1].

    "true latents" decodes the middle frames' own latents: what would be reached if nothing but the decoder were at fault.
    """
    frames = collate([clip]).frames.to(pipe.device)
    latents = encode_frames(pipe.vae, frames)
    assert pipe.latent_flow is not None
    ways: dict[str, tsr.Middle] = {
        "flow": partial(tsr.middle_frames, pipe.latent_flow),
        "slerp": tsr.slerp_middle,
        "blend": tsr.blend_middle,
    }
    found = {"truth": frames[0, 1::2], "true latents": decode_video(pipe.video_decoder, latents)[0, 1::2]}
    for refiner, ending in ((None, ""), (pipe.refiner, REFINED)):
        if refiner is None and ending:
            continue
        for name, middle in ways.items():
            generator = torch.Generator().manual_seed(derive_seed("interpolation", seed, index))
            longer = tsr.upsample_time(
                latents[:, ::2],
                middle=middle,
                refiner=refiner,
                scheduler=pipe.scheduler,
                fps=torch.tensor([clip.fps], device=pipe.device),
                generators=[generator],
                num_steps=DEFAULT_STEPS["refiner"],
            )
            found[name + ending] = decode_video(pipe.video_decoder, longer)[0, 1::2]
    return found


def interpolation(pipe: VideoGenPipeline, choice: ClipChoice, output: Path, distances: Distances, say: Say) -> list[Result]:
    """Flow against spherical interpolation and plain blending, coarse and refined, by true middle frames. Raises UserError."""
    if choice.num_frames < 3 or choice.num_frames % 2 == 0:
        raise UserError(f"middle frames are known in clips of 3, 5, 7 ... frames, not {choice.num_frames}")
    if pipe.latent_flow is None:
        raise UserError("this pipeline has no latent_flow: train it and assemble again")

    def methods(clip: Clip, index: int) -> tuple[dict[str, Tensor], dict[str, dict[str, float]]]:
        made = interpolate(pipe, clip, index, choice.seed)
        return made, {name: distances.between(frames, made["truth"]) for name, frames in made.items() if name != "truth"}

    pairs = [(f"flow{ending}", f"{other}{ending}") for ending in ("", REFINED) for other in ("slerp", "blend")]
    return _over_clips("interpolation", choice, output, distances, say, methods, pairs)


# Figure 7


@torch.inference_mode()
def decode_both_ways(pipe: VideoGenPipeline, clip: Clip, index: int, seed: int, strength: float) -> dict[str, Tensor]:
    """A clip's frames (F, 3, H, W) in [-1, 1] from its clean and its degraded latents, by either decoder."""
    frames = collate([clip]).frames.to(pipe.device)
    generator = torch.Generator().manual_seed(derive_seed("degradation", seed, index))
    degraded = degrade(frames[0], generator, strength)
    found = {"truth": frames[0], "degraded input": degraded}
    for name, given in (("clean", frames), ("degraded", degraded[None])):
        latents = encode_frames(pipe.vae, given)
        found[f"image decoder, {name}"] = decode_frames(pipe.vae, latents[0]).clamp(-1, 1)
        found[f"video decoder, {name}"] = decode_video(pipe.video_decoder, latents)[0]
    return found


def decoder(
    pipe: VideoGenPipeline, choice: ClipChoice, output: Path, distances: Distances, say: Say, *, strength: float = 1.0
) -> list[Result]:
    """The video decoder against the image decoder, on latents of clean and of degraded clips, with flicker. Raises UserError.

    Flicker is the warping error along the optical flow of the true clip, so that a method's own noise cannot mislead it.
    """

    def methods(clip: Clip, index: int) -> tuple[dict[str, Tensor], dict[str, dict[str, float]]]:
        made = decode_both_ways(pipe, clip, index, choice.seed, strength)
        forward, backward = dis_flows(clip.frames), dis_flows(clip.frames[::-1])[::-1]
        scores = {}
        for name, frames in made.items():
            scores[name] = {} if name == "truth" else distances.between(frames, made["truth"])
            scores[name]["warping_error"] = warping_error(to_uint8(frames), forward, backward)
        return made, scores

    pairs = [(f"video decoder, {given}", f"image decoder, {given}") for given in ("clean", "degraded")]
    about = {"degradation": strength, "flow": "DIS of the truth"}
    return _over_clips("decoder", choice, output, distances, say, methods, pairs, about)


Methods = Callable[[Clip, int], tuple[dict[str, Tensor], dict[str, dict[str, float]]]]
"""(clip, its index) -> frames (N, 3, H, W) by method, and scores by method and metric."""


def _over_clips(
    name: str,
    choice: ClipChoice,
    output: Path,
    distances: Distances,
    say: Say,
    methods: Methods,
    pairs: Sequence[tuple[str, str]],
    protocol: Mapping[str, Any] | None = None,
) -> list[Result]:
    """Every clip through every method; then the table, the picture and the results. pairs: methods to set against each other
    clip by clip, since clips differ more than methods do."""
    (output / "results").mkdir(parents=True, exist_ok=True)
    total, clips, skipped = choice.clips()
    scores = Scores()
    shown: list[tuple[str, Rows]] = []
    for index, clip in clips:
        made, reached = methods(clip, index)
        scores.captions.append(clip.caption)
        for method, values in (*reached.items(), *_contrasts(reached, pairs)):
            scores.add(method, index, values)
        if len(shown) < SHOWN:
            shown.append((clip.caption, {method: spread(to_uint8(frames), 8) for method, frames in made.items()}))
        say(f"{len(scores.captions)} of {total} clips")
    if not scores.captions:
        raise UserError(f"no clip of {choice.source} can be used: {skipped[0][1]}")
    about = {"ablation": name, "clips": choice.describe(), "lpips": distances.weights, **(protocol or {})}
    results = [
        _result(method, metric, moments, scores, choice, len(skipped), about)
        for (method, metric), moments in scores.moments.items()
    ]
    for each in results:
        each.write(output / "results" / f"{_slug(each.details['method'])}.{each.metric}.json")
    _present(output, results, shown)
    for bad, why in skipped:
        say(f"note: {bad} was left out: {why}")
    return results


def _contrasts(
    reached: Mapping[str, Mapping[str, float]], pairs: Sequence[tuple[str, str]]
) -> Iterator[tuple[str, dict[str, float]]]:
    for one, other in pairs:
        if one in reached and other in reached:
            yield f"{one} minus {other}", {key: value - reached[other][key] for key, value in reached[one].items()}


def _result(
    method: str,
    metric: str,
    moments: GroupedMoments,
    scores: Scores,
    choice: ClipChoice,
    skipped: int,
    protocol: Mapping[str, Any],
) -> Result:
    """spread: the standard deviation over clips."""
    whole = moments.whole()
    several = whole.count > 1
    return Result(
        metric=metric,
        value=float(whole.mean[0]),
        spread=math.sqrt(float(whole.covariance[0, 0])) if several else None,
        interval=mean_interval(moments) if several else None,
        samples=whole.count,
        skipped=skipped,
        fingerprint=fingerprint(
            prompts=scores.captions,
            count=len(scores.captions),
            seeds=[choice.seed],
            size=(choice.size, choice.size),
            num_frames=choice.num_frames,
            stride=choice.stride,
            fps=choice.fps,
            resize="none" if choice.source == "diorama" else Sampling(size=choice.size).describe()["resize"],
            **protocol,
        ),
        details={"method": method},
    )


def _slug(method: str) -> str:
    return "-".join("".join(char if char.isalnum() else " " for char in method).split())


def _present(output: Path, results: Sequence[Result], shown: Sequence[tuple[str, Rows]]) -> None:
    """table.md, which is printed too, and frames.png."""
    methods = list(dict.fromkeys(str(result.details["method"]) for result in results))
    metrics = list(dict.fromkeys(result.metric for result in results))
    cells = {(result.details["method"], result.metric): cell(result) for result in results}
    rows = [[method, *(cells.get((method, metric), "-") for metric in metrics)] for method in methods]
    clips = max(result.samples for result in results)
    text = table([f"mean of {clips} (95%)", *metrics], rows)
    write_text(text + "\n", output / "table.md")
    write_picture(side_by_side(shown), output / "frames.png")
    print(text, flush=True)


def cell(result: Result) -> str:
    """A value with half the width of its interval."""
    if result.interval is None:
        return f"{result.value:.4g}"
    return f"{result.value:.4g} +- {(result.interval[1] - result.interval[0]) / 2:.2g}"


# Table 3


def reference(request: Request, team: Team, say: Say) -> list[Result]:
    """The same prompts and seeds with and without a reference image, each measured as `evaluate` does. Raises UserError."""
    assert request.production is not None
    results: list[Result] = []
    ways = {"with reference": "generated", "without reference": "none"}
    for method, given in ways.items():
        say(method)
        production = dataclasses.replace(request.production, reference=given)
        paper = request.paper if given == "generated" else "without reference"
        place = request.output / _slug(method)
        part = dataclasses.replace(request, production=production, output=place, paper=paper)
        found = evaluate(part, team, say)
        if request.networks.in_domain is not None and request.networks.real is None:  # the true clips need not be drawn twice
            request = dataclasses.replace(request, networks=dataclasses.replace(request.networks, real=place / REAL))
        results += [dataclasses.replace(each, details={**each.details, "method": method}) for each in found]
    if team.ranks.first:
        (request.output / "results").mkdir(exist_ok=True)
        for result in results:
            result.write(request.output / "results" / f"{_slug(str(result.details['method']))}.{result.metric}.json")
        _present(request.output, results, _strips(request, list(ways)))
    return results


def _strips(request: Request, methods: Sequence[str]) -> list[tuple[str, Rows]]:
    assert request.prompts is not None
    folders = {
        method: VideoFolderSamples(request.output / _slug(method) / VIDEOS, Sampling(None, 1, None)) for method in methods
    }
    return [
        (prompt, {method: spread(videos.read(index).frames, 8) for method, videos in folders.items()})
        for index, prompt in enumerate(request.prompts.texts[:SHOWN])
    ]
