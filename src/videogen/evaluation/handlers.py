"""What `videogen evaluate` does with its options (sections 4.1-4.3); what needs no network is in commands.py."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

from videogen.config import MAX_STEPS, UserError
from videogen.data.diorama import Diorama, caption
from videogen.evaluation import ablations
from videogen.evaluation.benchmarks import UCF101_VIDEOS, Prompts, read_split
from videogen.evaluation.benchmarks import msrvtt as msrvtt_prompts
from videogen.evaluation.benchmarks import ucf101 as ucf101_prompts
from videogen.evaluation.evaluate import Networks, Request, evaluate
from videogen.evaluation.fidelity import opencv
from videogen.evaluation.production import VIDEOS, Production, Team, load_pipeline, team
from videogen.evaluation.videos import Sampling, VideoFolderSamples, read_prompts
from videogen.generation import GenerationOptions


class _Narrator:
    """Progress on stderr, a line every few seconds at most; notes always."""

    def __init__(self, quiet: bool) -> None:
        self.quiet, self.last = quiet, float("-inf")

    def __call__(self, text: str) -> None:
        note = text.startswith(("note:", "warning:"))
        if note or not (self.quiet or time.monotonic() - self.last < 5):
            line = "".join(char if char.isprintable() else "?" for char in text)
            print(f"videogen: {line}", file=sys.stderr, flush=True)
            self.last = self.last if note else time.monotonic()


def _run(options: argparse.Namespace, work: Callable[[Team, _Narrator], Any]) -> None:
    """Join the ranks, make the output folder, and work(team, say)."""
    say = _Narrator(options.quiet)
    if options.output.exists() and not options.output.is_dir():
        raise UserError(f"{options.output} is a file: results need a folder")

    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
        with team(options.device) as ranks:
            try:
                options.output.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"cannot make the folder {options.output}: {error.strerror}") from None
            work(ranks, say)


def ucf101(options: argparse.Namespace) -> None:
    prompts = None
    if options.model is not None:
        if options.prompts is None:
            raise UserError("give --prompts: PYoCo's list (docs/evaluation.md), your own 101 lines, or classInd.txt")
        prompts = ucf101_prompts(options.prompts, options.count or UCF101_VIDEOS, classes=options.classes, split=options.split)
    _evaluate(options, f"ucf101 {options.setting}", prompts)


def msrvtt(options: argparse.Namespace) -> None:
    if options.annotations is None or options.clip is None:
        raise UserError("CLIPSIM needs --annotations (the captions) and --clip (the network)")
    _evaluate(options, "msrvtt", msrvtt_prompts(options.annotations, options.count))


def videos(options: argparse.Namespace) -> None:
    options.model, options.videos = None, options.folder
    _evaluate(options, "", None)


def _evaluate(options: argparse.Namespace, benchmark: str, prompts: Prompts | None) -> None:
    request = _request(options, benchmark, prompts)
    _run(options, lambda team, say: evaluate(request, team, say))


def reference(options: argparse.Namespace) -> None:
    request = _request(options, "reference", _ablation_prompts(options))
    _run(options, lambda team, say: ablations.reference(request, team, say))


def _ablation_prompts(options: argparse.Namespace) -> Prompts:
    if options.prompts is not None and options.annotations is not None:
        raise UserError("give either --prompts or --annotations")
    if options.annotations is not None:
        return msrvtt_prompts(options.annotations, options.count or 1000)
    if options.prompts is not None:
        return Prompts.of(read_prompts(options.prompts)[: options.count], f"prompts of {options.prompts.name}")
    world = Diorama(split="held_out")
    return Prompts.of([caption(world.labels(index)) for index in range(options.count or 64)], "Diorama held out")


def _request(options: argparse.Namespace, benchmark: str, prompts: Prompts | None) -> Request:
    return Request(
        output=options.output,
        production=None if options.model is None else _production(options),
        prompts=prompts,
        folder=getattr(options, "videos", None),
        prompts_file=options.prompts if benchmark == "" else None,
        references=getattr(options, "references", None),
        networks=_networks(options),
        sampling=_sampling(options),
        skip_bad=options.skip_bad,
        fps=options.fps,
        batch_size=options.batch,
        protocol={"benchmark": benchmark},
        paper="ucf101 zero-shot" if benchmark == "reference" else benchmark,
    )


def _sampling(options: argparse.Namespace) -> Sampling:
    return Sampling(options.num_frames, options.stride, options.size, options.start)


def _networks(options: argparse.Namespace) -> Networks:
    names = () if options.real_split is None else read_split(options.real_split)
    in_domain = getattr(options, "in_domain", None)
    return Networks(options.c3d, options.i3d, options.clip, options.real, names, options.real_stride, in_domain)


def _production(options: argparse.Namespace) -> Production:
    return Production(
        model=options.model,
        seed=options.seed,
        reference=getattr(options, "reference", "generated"),
        options=GenerationOptions(
            num_frames=getattr(options, "start", 0) + (options.num_frames - 1) * getattr(options, "stride", 1) + 1,
            temporal_factor=1,
            fps=options.fps,
            num_inference_steps=dict.fromkeys(MAX_STEPS, options.steps) if options.steps else {},
            guidance_scale=options.guidance_scale,
        ),
        dtype=options.dtype,
        batch_size=options.generate_batch,
        ending="" if options.lossless else ".mp4",
    )


def diorama(options: argparse.Namespace) -> None:
    opencv()
    from videogen.evaluation import diorama_benchmark as benchmark

    labels, prompts = benchmark.held_out(options.count)

    def work(team: Team, say: _Narrator) -> None:
        production, folder = None, None
        if options.true_clips is None:
            production = _production(options)
        else:
            rate = options.fps or 4.0
            folder = benchmark.true_clips(labels, options.output, options.true_clips, options.num_frames, rate, team)
        request = Request(
            output=options.output,
            production=production,
            prompts=prompts,
            folder=folder,
            sampling=Sampling(options.num_frames, size=None),
            batch_size=options.batch,
            measures=[benchmark.Agreement(labels)],
            protocol={"benchmark": "diorama"},
        )
        evaluate(request, team, say)
        if team.ranks.first:
            videos = VideoFolderSamples(options.output / VIDEOS, request.sampling)
            if benchmark.picture_failures(labels, prompts.texts, videos, options.output):
                say(f"note: failures are in {options.output / 'failures.png'}")

    _run(options, work)


def control(options: argparse.Namespace) -> None:
    opencv()
    from videogen.evaluation.control import control

    production = _production(options)
    _run(options, lambda team, say: control(production, options.count, options.pictures, options.output, team, say))


def gallery(options: argparse.Namespace) -> None:
    opencv()
    from videogen.evaluation.gallery import gallery

    def work(team: Team, say: _Narrator) -> None:
        if team.ranks.size > 1:
            raise UserError("a gallery is drawn by one process")
        print("\n".join(map(str, gallery(_production(options), options.output, team, say))))

    _run(options, work)


def interpolation(options: argparse.Namespace) -> None:
    _over_clips(options, ablations.interpolation)


def decoder(options: argparse.Namespace) -> None:
    _over_clips(options, lambda *parts: ablations.decoder(*parts, strength=options.degradation))


def _over_clips(options: argparse.Namespace, ablation: Callable[..., Any]) -> None:
    def work(team: Team, say: _Narrator) -> None:
        distances = ablations.Distances.load(options.lpips, team.ranks.device)
        pipe = load_pipeline(options.model, options.dtype, team.ranks.device)
        keys = ("num_frames", "count", "fps", "stride", "start", "seed", "skip_bad")
        size = options.size or pipe.size[0]
        choice = ablations.ClipChoice(source=options.clips, size=size, **{key: getattr(options, key) for key in keys})
        if team.ranks.first:
            ablation(pipe, choice, options.output, distances, say)
        team.wait()

    _run(options, work)
