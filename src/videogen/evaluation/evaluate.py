"""One evaluation from request to results: UCF-101, MSR-VTT, or anybody's folder (section 4.1), and Table 3's two of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videogen.config import UserError
from videogen.evaluation.benchmarks import PAPER, Prompts
from videogen.evaluation.features import load_c3d, load_clip, load_i3d
from videogen.evaluation.fidelity import opencv
from videogen.evaluation.in_domain import TrueClips, load_judges
from videogen.evaluation.measures import ClipSimilarity, Frechet, Inception, Measure, ReferenceFidelity, Steadiness
from videogen.evaluation.pictures import table
from videogen.evaluation.production import REFERENCES, VIDEOS, Production, Team, generate_missing
from videogen.evaluation.result import Result
from videogen.evaluation.run import RealSet, conclude, measure, real_videos
from videogen.evaluation.videos import Sampling, VideoFolderSamples, prompts_of

Say = Callable[[str], None]


@dataclass(frozen=True)
class Networks:
    """Weights of the feature networks; a metric whose network is None is left out. real: the folder, or an earlier run's
    real.safetensors, that FVD compares with; real_names: only these videos of the folder. in_domain: a folder of mini's runs,
    whose networks take the place of the others; without `real`, FVD is to true clips of Diorama."""

    c3d: Path | None = None
    i3d: Path | None = None
    clip: str | None = None
    real: Path | None = None
    real_names: Sequence[str] = ()
    real_stride: int = 1
    in_domain: Path | None = None


@dataclass(frozen=True)
class Request:
    """What is measured and where results go. Either `production` with `prompts`, or `folder`.

    folder's prompts: `prompts` one a video, else `prompts_file`, else what each video itself says; references: images by the
    names of the videos; measures: beside those of the networks; protocol: enters the fingerprint; paper: key of PAPER.
    """

    output: Path
    production: Production | None = None
    prompts: Prompts | None = None
    folder: Path | None = None
    prompts_file: Path | None = None
    references: Path | None = None
    networks: Networks = field(default_factory=Networks)
    sampling: Sampling = field(default_factory=Sampling)
    skip_bad: bool = False
    fps: float | None = None
    batch_size: int = 8
    measures: Sequence[Measure] = ()
    protocol: Mapping[str, Any] = field(default_factory=dict)
    paper: str = ""


def evaluate(request: Request, team: Team, say: Say) -> list[Result]:
    """Generate what is missing, measure, and on rank 0 write request.output/METRIC.json and print a table. Raises UserError."""
    _check(request)
    request.output.mkdir(parents=True, exist_ok=True)
    videos = _videos(request, team, say)
    prompt = _prompt(request, videos)
    measures = _measures(request, videos, prompt, team, say)
    if not measures:
        raise UserError("nothing to measure: give weights (--c3d, --i3d with --real, --clip), or install the extra 'data'")
    seen = measure(videos, measures, request.output, team, batch_size=request.batch_size, say=say)
    if not team.ranks.first:
        return []
    results, warnings = conclude(
        videos,
        measures,
        seen,
        request.output,
        prompts=_prompts_measured(request, videos, prompt, [name for name, _ in seen.skipped]),
        seeds=_seeds(request, len(videos)),
        details=_generated(request),
        protocol={"stored_as": _stored_as(videos), **_described(request)},
    )
    for warning in [f"{name} was left out: {why}" for name, why in seen.skipped] + warnings:
        say(f"note: {warning}")
    print(describe(results, PAPER.get(request.paper, {})), flush=True)
    return results


def _check(request: Request) -> None:
    if (request.production is None) == (request.folder is None):
        raise UserError("give either a pipeline to generate with or a folder of videos")
    if request.production is not None and not (request.prompts and request.prompts.texts):
        raise UserError("a pipeline needs prompts to generate from")
    networks = request.networks
    if networks.in_domain is not None:
        if any(each is not None for each in (networks.c3d, networks.i3d, networks.clip)):
            raise UserError("--in-domain takes the place of --c3d, --i3d and --clip: measure twice, into two folders")
    elif (networks.i3d is None) != (networks.real is None):
        raise UserError("FVD needs both --i3d (weights) and --real (real videos)")


def _videos(request: Request, team: Team, say: Say) -> VideoFolderSamples:
    if request.production is None:
        assert request.folder is not None
        return VideoFolderSamples(request.folder, request.sampling, request.skip_bad, fps=request.fps)
    assert request.prompts is not None
    jobs = request.production.jobs(request.prompts.texts)
    names = generate_missing(request.production, jobs, request.output, team, say)
    team.wait()
    return VideoFolderSamples(request.output / VIDEOS, request.sampling, request.skip_bad, names, request.fps)


def _prompt(request: Request, videos: VideoFolderSamples) -> Callable[[int], str]:
    if request.prompts is None:
        return prompts_of(videos, request.prompts_file)
    if len(request.prompts.texts) != len(videos):
        raise UserError(
            f"{videos.folder} has {len(videos)} videos for {len(request.prompts.texts)} prompts: "
            "one a prompt, in the order of the names"
        )
    return request.prompts.texts.__getitem__


def _measures(
    request: Request, videos: VideoFolderSamples, prompt: Callable[[int], str], team: Team, say: Say
) -> list[Measure]:
    networks, device = request.networks, team.ranks.device
    found: list[Measure] = list(request.measures)
    if networks.in_domain is not None:
        found += _in_domain(request, networks.in_domain, videos, prompt, team, say)
    if networks.c3d is not None:
        c3d, source = load_c3d(networks.c3d)
        found.append(Inception(c3d.to(device), source))
    if networks.i3d is not None and networks.real is not None:
        i3d, source = load_i3d(networks.i3d)
        say(f"real videos: {networks.real}")
        real = real_videos(_real_set(request, networks.real), i3d.to(device), source, request.output, team)
        found.append(Frechet(i3d, source, real))
    if networks.clip is not None:
        clip, source = load_clip(networks.clip)
        found.append(ClipSimilarity(clip.to(device), source, prompt))
    if references := _references(request):
        found.append(ReferenceFidelity(references, request.sampling))
    try:
        opencv()
        found.append(Steadiness())
    except UserError as error:
        say(f"note: motion and flicker are left out: {error}")
    return found


def _real_set(request: Request, place: Path | TrueClips) -> RealSet:
    networks = request.networks
    sampling = Sampling(request.sampling.num_frames, networks.real_stride, request.sampling.size)
    return RealSet(place, sampling, networks.real_names, request.skip_bad)


def _in_domain(
    request: Request, runs: Path, videos: VideoFolderSamples, prompt: Callable[[int], str], team: Team, say: Say
) -> list[Measure]:
    """The in-domain three. True clips are twice as many as the videos: their halves, whose distance is FVD's noise floor, are
    then as large as the set that is measured."""
    judges = load_judges(runs, team.ranks.device)
    place: Path | TrueClips | None = request.networks.real
    if place is None:
        rate = next(videos.samples()).fps
        if rate is None:
            raise UserError("these videos do not say how many frames a second they have: give --fps")
        place = TrueClips(request.sampling, rate, 2 * len(videos))
        say(f"real videos: {len(place)} true clips of Diorama at {rate:g} fps")
    real = real_videos(_real_set(request, place), judges.features, judges.judge_source, request.output, team)
    return [
        Inception(judges.classes, judges.judge_source),
        Frechet(judges.features, judges.judge_source, real),
        ClipSimilarity(judges.clip, judges.clip_source, prompt),
    ]


def _references(request: Request) -> Path | None:
    if request.production is None:
        return request.references
    return request.output / REFERENCES if request.production.reference == "generated" else None


def _prompts_measured(
    request: Request, videos: VideoFolderSamples, prompt: Callable[[int], str], skipped: Sequence[str]
) -> list[str] | None:
    """For the fingerprint; None where nothing depends on them and they would have to be looked for."""
    if (request.prompts, request.prompts_file, request.networks.clip, request.networks.in_domain) == (None,) * 4:
        return None
    return [prompt(index) for index, name in enumerate(videos.names) if name not in set(skipped)]


def _seeds(request: Request, count: int) -> list[int] | None:
    return None if request.production is None else [request.production.seed + index for index in range(count)]


def _generated(request: Request) -> dict[str, Any]:
    made = request.production
    return {} if made is None else {"generated": {"model": made.model, "dtype": made.dtype, **made.describe()}}


def _stored_as(videos: VideoFolderSamples) -> list[str]:
    return sorted({Path(name).suffix.lower().lstrip(".") or "images" for name in videos.names})


def _described(request: Request) -> dict[str, Any]:
    if request.prompts is None:
        return dict(request.protocol)
    about = request.prompts.describe()
    return {**request.protocol, **{key: about[key] for key in ("list", "list_sha256", "list_verified")}}


def describe(results: Sequence[Result], paper: Mapping[str, str]) -> str:
    """A table of results, with the paper's numbers beside ours where there are some."""
    header = ["metric", "value", "+-", "95% interval", "videos", *(["paper (for reference only)"] if paper else [])]
    rows = []
    for result in results:
        interval = "-" if result.interval is None else f"{result.interval[0]:.4g} .. {result.interval[1]:.4g}"
        spread = "-" if result.spread is None else f"{result.spread:.3g}"
        row = [result.metric, f"{result.value:.5g}", spread, interval, str(result.samples)]
        rows.append([*row, *([paper.get(result.metric, "-")] if paper else [])])
        floor = result.details.get("noise_floor_of_real")
        if floor is not None:
            halves = f"2 x {result.details['real_videos'] // 2}"
            rows.append(["- its floor, real to real", f"{floor:.5g}", "-", "-", halves, *(["-"] if paper else [])])
    return table(header, rows)
