"""The one iterator that turns jobs into videos (Figure 2): the command line, evaluation and previews draw from it.

Video i depends on its own job only: its noise comes from a generator seeded with the job's seed, so it is the same alone, in
a batch, or on another number of processes. torch is imported when the first video is made, so that a command line can check
its input before.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

import videogen
from videogen.config import MAX_STEPS, Guidance, UserError, checked_eta
from videogen.video import MAX_FPS, MIN_FPS, Video, read_image

if TYPE_CHECKING:
    from videogen.pipeline import VideoGenPipeline

TEMPORAL_FACTORS = (1, 2, 4, 8)
MAX_SEED = 2**63 - 1
MAX_FRAMES = 256  # of the base network; mini and the paper use 16


@dataclass(frozen=True)
class Reference:
    """The reference image (section 3.1). name: "generated", "none" or where the image came from; image: RGB, for the last."""

    name: str
    image: Image.Image | None = None

    @classmethod
    def named(cls, name: str) -> Reference:
        """From "generated", "none" or an image file. Raises UserError where that cannot be read."""
        return cls(name) if name in ("generated", "none") else cls(name, read_image(name))

    def describe(self) -> dict[str, str]:
        """For provenance: the name, and what the pixels were."""
        if self.image is None:
            return {"name": self.name}
        return {"name": self.name, "sha256_of_pixels": hashlib.sha256(self.image.tobytes()).hexdigest()}


@dataclass(frozen=True)
class Job:
    """One video to make. seed: 0..2^63-1; index: its place in the list of jobs."""

    prompt: str
    seed: int
    index: int
    reference: Reference = Reference("generated")


@dataclass(frozen=True)
class GenerationOptions:
    """What all jobs of a run share; None leaves the choice to the pipeline. Raises UserError on values out of range.

    num_frames: of the base network, before temporal super-resolution (n become (n - 1) * temporal_factor + 1); fps: of the
    finished video; num_inference_steps: a stage of MAX_STEPS -> steps; guidance: see `config.Guidance`; eta: see
    `diffusion.sample`.
    """

    negative_prompt: str | None = None
    num_frames: int = 16
    temporal_factor: int = 8
    fps: float | None = None
    num_inference_steps: Mapping[str, int] = field(default_factory=dict)
    guidance_scale: float | None = None
    guidance_rescale: float | None = None
    guidance_interval: tuple[float, float] | None = None
    eta: float | None = None

    def __post_init__(self) -> None:
        if self.temporal_factor not in TEMPORAL_FACTORS:
            raise UserError(f"the temporal factor must be one of {TEMPORAL_FACTORS}, not {self.temporal_factor}")
        if not 1 <= self.num_frames <= MAX_FRAMES:
            raise UserError(f"the number of frames must lie in 1..{MAX_FRAMES}, not {self.num_frames}")
        if self.num_frames == 1 and self.temporal_factor > 1:
            raise UserError("a single frame has nothing between it and the next: take a temporal factor of 1")
        if self.fps is not None and not MIN_FPS <= self.fps <= MAX_FPS:
            raise UserError(f"fps must lie in {MIN_FPS}..{MAX_FPS}, not {self.fps}")
        scale, rescale = self.guidance_scale, self.guidance_rescale
        Guidance(1.0 if scale is None else scale, 0.0 if rescale is None else rescale, self.guidance_interval or (0.0, 1.0))
        checked_eta(self.eta or 0.0)
        for stage, steps in self.num_inference_steps.items():
            if not 1 <= steps <= MAX_STEPS.get(stage, 0):
                limits = ", ".join(f"{name} 1..{limit}" for name, limit in MAX_STEPS.items())
                raise UserError(f"the stages and their steps are {limits}, not {steps} for {stage}")


def make_jobs(prompts: Sequence[str], seed: int, num_videos: int, reference: Reference) -> list[Job]:
    """`num_videos` jobs a prompt, prompt by prompt; job i has seed + i, whatever else is in the list.

    Raises UserError on an empty prompt or a seed out of range.
    """
    repeated = [prompt for prompt in prompts for _ in range(num_videos)]
    if not all(prompt.strip() for prompt in repeated):
        raise UserError("a prompt is empty: say what the video shows")
    if not 0 <= seed <= MAX_SEED - max(len(repeated) - 1, 0):
        raise UserError(f"seeds must lie in 0..{MAX_SEED}; this run would use {seed}..{seed + len(repeated) - 1}")
    return [Job(prompt, seed + index, index, reference) for index, prompt in enumerate(repeated)]


def with_references(
    jobs: Sequence[Job], model: str, negative_prompt: str | None, *, dtype: str = "float32", device: str = "cpu"
) -> list[Job]:
    """The same jobs with reference images by another text-to-image pipeline of diffusers, freed again (3.1).

    model: its folder or hub id. dtype: a name of torch's. The picture of a job follows from its prompt and seed. Raises
    UserError.
    """
    import torch

    from videogen.stages.reference_image import images_of_model

    sources = [torch.Generator("cpu").manual_seed(job.seed) for job in jobs]
    negatives = [negative_prompt or ""] * len(jobs)
    pictures = images_of_model(
        model, [job.prompt for job in jobs], negatives, sources, dtype=getattr(torch, dtype), device=device
    )
    return [replace(job, reference=Reference(model, picture)) for job, picture in zip(jobs, pictures, strict=True)]


def generate(
    pipe: VideoGenPipeline,
    jobs: Sequence[Job],
    options: GenerationOptions,
    *,
    batch_size: int = 1,
    origin: Mapping[str, Any] | None = None,
    on_step: Callable[..., dict[str, Any]] | None = None,
) -> Iterator[tuple[Job, Video]]:
    """Videos with their provenance, in the order of the jobs.

    At most `batch_size` jobs that share a reference run at once. `origin` (see `describe_model`) enters the provenance.
    `on_step` is the pipeline's `callback_on_step_end`. Raises UserError where the network's output is not finite.
    """
    for _, group in itertools.groupby(jobs, key=lambda job: id(job.reference)):
        same_reference = list(group)
        for start in range(0, len(same_reference), batch_size):
            batch = same_reference[start : start + batch_size]
            frames, fps = _run(pipe, batch, options, on_step)
            for job, pixels in zip(batch, frames, strict=True):
                note = _provenance(pipe, job, options, origin or {}, pixels.shape, fps)
                yield job, Video(_to_bytes(pixels), fps, note)


def _run(
    pipe: VideoGenPipeline, batch: Sequence[Job], options: GenerationOptions, on_step: Callable[..., dict[str, Any]] | None
) -> tuple[np.ndarray, float]:
    """Frames float (B, F, H, W, 3) in [0, 1] and their rate, for jobs that share a reference."""
    import torch

    reference = batch[0].reference
    output: Any = pipe(
        prompt=[job.prompt for job in batch],
        negative_prompt=options.negative_prompt,
        image=reference.image,
        use_reference=reference.name != "none",
        num_frames=options.num_frames,
        temporal_factor=options.temporal_factor,
        fps=options.fps,
        num_inference_steps=dict(options.num_inference_steps) or None,
        guidance_scale=options.guidance_scale,
        guidance_rescale=options.guidance_rescale,
        guidance_interval=options.guidance_interval,
        eta=options.eta,
        generator=[torch.Generator("cpu").manual_seed(job.seed) for job in batch],
        output_type="np",
        callback_on_step_end=on_step,
    )
    return np.asarray(output.frames), float(output.fps)


def _to_bytes(frames: np.ndarray) -> np.ndarray:
    if not np.isfinite(frames).all():
        raise UserError("the networks returned numbers that are not finite; try --dtype float32")
    return np.rint(np.clip(frames, 0, 1) * 255).astype(np.uint8)


def _provenance(
    pipe: VideoGenPipeline,
    job: Job,
    options: GenerationOptions,
    origin: Mapping[str, Any],
    shape: tuple[int, ...],
    fps: float,
) -> dict[str, Any]:
    """JSON types only: all that is needed to make the video again."""
    shared = asdict(options)
    return {
        "prompt": job.prompt,
        "negative_prompt": shared.pop("negative_prompt"),
        "seed": job.seed,
        "reference": job.reference.describe(),
        "options": {
            **shared,
            "scheduler": type(pipe.scheduler).__name__,
            "device": str(pipe.device),
            "dtype": str(pipe.dtype).removeprefix("torch."),
        },
        "video": {"frames": shape[0], "height": shape[1], "width": shape[2], "fps": fps},
        "versions": _versions(),
        **origin,
    }


def _versions() -> dict[str, str]:
    libraries = ("torch", "diffusers", "transformers")
    return {"videogen": videogen.__version__, **{name: metadata.version(name) for name in libraries}}


def describe_model(name: str) -> dict[str, Any]:
    """For provenance: a model's name and the SHA-256 of each safetensors file of its folder.

    name: "mini", a pipeline folder, or a hub id. Raises UserError.
    """
    from videogen.models.pretrained import pipeline_folder

    folder = pipeline_folder(name)
    files = sorted(folder.rglob("*.safetensors"))
    return {"model": name, "weights": {file.relative_to(folder).as_posix(): _sha256(file) for file in files}}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
