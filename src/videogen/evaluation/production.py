"""The videos of a pipeline, generated where they are missing (section 4.1).

One file a sample, named by its index and written whole or not at all, so that a run can be stopped anywhere and resumed by the
same command, on another number of processes too. Rank r of R makes the samples r, r + R, r + 2R, ...
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from PIL import Image

from videogen.config import UserError
from videogen.evaluation.pictures import write_picture
from videogen.generation import GenerationOptions, Job, Reference, describe_model, generate, make_jobs
from videogen.models.pretrained import quiet
from videogen.pipeline import VideoGenOutput, VideoGenPipeline
from videogen.training.distributed import Ranks
from videogen.training.distributed import ranks as join_ranks
from videogen.video import read_provenance, write_video

VIDEOS, REFERENCES = "videos", "references"
_PATIENCE = datetime.timedelta(days=30)  # ranks may be hours apart


@dataclass(frozen=True)
class Team:
    """The processes of this evaluation."""

    ranks: Ranks
    group: Any = None  # gloo, whatever the device, and patient

    def wait(self) -> None:
        """Return when every rank has come here."""
        if self.ranks.size > 1:
            dist.barrier(group=self.group)


@contextmanager
def team(device: str) -> Iterator[Team]:
    """As torchrun's environment describes it; one process without. Raises UserError where CUDA is asked for and absent."""
    with join_ranks(device) as ranks:
        yield Team(ranks, dist.new_group(backend="gloo", timeout=_PATIENCE) if ranks.size > 1 else None)


@dataclass(frozen=True)
class Production:
    """How the samples are made. reference: "generated" or "none" (Table 3); ending: ".mp4", or "" for PNGs without loss."""

    model: str
    seed: int = 0
    reference: str = "generated"
    options: GenerationOptions = field(default_factory=lambda: GenerationOptions(temporal_factor=1))
    dtype: str = "float32"
    batch_size: int = 1
    ending: str = ".mp4"

    def describe(self) -> dict[str, Any]:
        """For the protocol fingerprint: all that another model would have to be asked in the same way."""
        shared = json.loads(json.dumps(asdict(self.options)))  # lists, as they come back from a file
        return {"seed": self.seed, "reference": self.reference, "stored_as": self.ending.strip(".") or "png", **shared}

    def jobs(self, prompts: Sequence[str]) -> list[Job]:
        return make_jobs(prompts, self.seed, 1, Reference(self.reference))

    def name(self, index: int) -> str:
        """Of sample `index` in the folder of videos."""
        return f"{index:06d}{self.ending}"


class EvaluatedPipeline(VideoGenPipeline):
    """The pipeline, keeping the reference images of its videos: how well frame 0 follows them is measured."""

    references: Sequence[Image.Image] = ()
    """Of the videos made so far, in their order, until they are taken."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = super().__call__(*args, **kwargs)
        assert isinstance(output, VideoGenOutput)
        self.references = [*self.references, *(output.reference or ())]
        return output


def generate_missing(
    production: Production, jobs: Sequence[Job], output: Path, team: Team, say: Callable[[str], None] = lambda _: None
) -> list[str]:
    """Make this rank's share of output/videos (and output/references) as far as it is not there. jobs: numbered from 0.

    Returns the names of all samples. Raises UserError where a file of that name is another run's.
    """
    videos, references = output / VIDEOS, output / REFERENCES
    for folder in (videos, references):
        folder.mkdir(parents=True, exist_ok=True)
    mine = jobs[team.ranks.rank :: team.ranks.size]
    origin = describe_model(production.model)
    missing = [job for job in mine if not _is_there(videos / production.name(job.index), job, production, origin)]
    if missing:
        pipe = load_pipeline(production.model, production.dtype, team.ranks.device)
        say(f"{len(missing)} of {len(mine)} videos are missing")
        made = generate(pipe, missing, production.options, batch_size=production.batch_size, origin=origin)
        for position, (job, video) in enumerate(made):
            if pipe.references:
                picture, *pipe.references = pipe.references
                write_picture(picture, references / f"{job.index:06d}.png")
            write_video(video, videos / production.name(job.index), overwrite=True)
            say(f"{position + 1} of {len(missing)}: {videos / production.name(job.index)}")
    return [production.name(job.index) for job in jobs]


def load_pipeline(model: str, dtype: str, device: torch.device) -> EvaluatedPipeline:
    """The pipeline on this rank's device. Raises UserError."""
    with quiet():
        pipe: EvaluatedPipeline = EvaluatedPipeline.from_pretrained(model, dtype=getattr(torch, dtype)).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _is_there(path: Path, job: Job, production: Production, origin: Mapping[str, Any]) -> bool:
    """Whether the sample exists. Raises UserError where it was made otherwise than this run would."""
    if not path.exists():
        return False
    note = read_provenance(path)
    options = asdict(production.options)
    wanted = {
        "prompt": job.prompt,
        "seed": job.seed,
        "reference": job.reference.describe(),
        "negative_prompt": options.pop("negative_prompt"),
        "weights": origin["weights"],
    }
    found = {key: note.get(key) for key in wanted}
    used: Mapping[str, Any] = note["options"] if isinstance(note.get("options"), dict) else {}
    wanted |= json.loads(json.dumps({**options, "dtype": production.dtype}))
    found |= {key: used.get(key) for key in [*options, "dtype"]}
    if different := [key for key in wanted if wanted[key] != found[key]]:
        raise UserError(
            f"{path} was made with another {different[0].replace('_', ' ')}: choose another output folder, or remove it"
        )
    return True
