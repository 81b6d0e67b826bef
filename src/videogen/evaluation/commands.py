"""The options of `videogen evaluate` and `videogen study` (sections 4.1-4.4). Asking for help imports nothing heavy."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from videogen.config import UserError

Whole = Callable[[int, int], Callable[[str], int]]
Real = Callable[[float, float], Callable[[str], float]]
Run = Callable[[argparse.Namespace], None]

EVALUATE = """\
Every table and figure of the paper by one command; docs/evaluation.md says what each number means and how noisy it is.

The feature networks are not part of this package. What to download once, and how to make safetensors of it where you trust it,
is written in docs/evaluation.md:
  --c3d   C3D fine-tuned on UCF-101, of TGAN v2's authors (Inception Score): conv3d_deepnetA_ucf.npz with mean2.npz beside it
  --i3d   I3D of Kinetics-400 as FVD uses it: safetensors of VideoGPT's i3d_pretrained_400.pt or StyleGAN-V's i3d_torchscript.pt
  --clip  a folder or hub id with model.safetensors (CLIPSIM), such as openai/clip-vit-base-patch32@refs/pr/15
  --lpips a folder with vgg16.safetensors and lpips.safetensors (models/lpips.py)
Results are JSON files that carry the fingerprint of their protocol, and `videogen evaluate compare` refuses to set numbers
side by side that were not measured alike. torchrun --nproc-per-node 8 -m videogen evaluate ... shares the work."""

UCF101 = """\
Inception Score and FVD on UCF-101 as in section 4.1: 16 frames of 256x256. The paper: IS 71.61 +- 0.24 and FVD 554 +- 23
zero-shot; 82.78 +- 0.34 and 345 +- 15 with the base network fine-tuned on UCF-101 (give that pipeline, and
--setting fine-tuned). 10,000 videos by default; below 2,048 neither number means much."""

MSRVTT = """\
CLIPSIM over MSR-VTT's test captions: 59,800 videos, or --count 1000 as in Table 3. The paper: 0.3127."""

VIDEOS = """\
Anybody's folder of videos (or of folders of images): motion and flicker always; Inception Score, FVD, CLIPSIM and reference
fidelity where their networks or files are given."""

REFERENCE = """\
Table 3: the same prompts and seeds with and without a reference image. Without a list of prompts, Diorama's held-out ones."""

INTERPOLATION = """\
Figure 6: middle frames of true clips by the flow-guided latents, by spherical interpolation and by plain blending, each as it
is and refined, against the true ones in PSNR, SSIM and (with --lpips) LPIPS."""

DECODER = """\
Figure 7: the video decoder against the frozen image decoder, on the latents of clean and of degraded clips, in PSNR, SSIM,
flicker and (with --lpips) LPIPS."""

DIORAMA = """\
Does mini do what it is told? Prompts for held-out (colour, shape, motion) triples of Diorama, and of each video, by classical
vision: colour, shape, motion, speed, place, time, weather, camera. --true-clips measures the checker instead of a model."""

CONTROL = """\
What steers a video, on Diorama: the same words with four references (Figure 3), one reference with four motions, the same at
twice the frame rate, and how near the first frame is to its reference. --pictures: photos of yours are followed too?"""

GALLERY = """\
Draw what a pipeline makes of six prompts, of four references and four motions (Figure 3), and the strips of Figures 6
and 7, as FOLDER/*.jpg. The first seeds and scenes, never a choice; FOLDER/made has the videos and numbers behind them."""

COMPARE = """\
Two results side by side. Refused where their fingerprints differ, naming what differs; --allow lets one key differ."""


def add_commands(commands: Any, whole: Whole, real: Real) -> None:
    """Add `evaluate` and `study` to the subparsers `commands`. whole, real: argument types by their range."""
    evaluate = commands.add_parser("evaluate", help="measure videos or a pipeline", description=EVALUATE)
    kinds = evaluate.add_subparsers(title="what", metavar="WHAT", required=True)

    def kind(name: str, help: str, description: str) -> Any:
        parser = kinds.add_parser(name, help=help, description=description)
        parser.set_defaults(run=_later(name))
        return parser

    for name, help, description in (
        ("ucf101", "Inception Score and FVD (tables 1 and 2)", UCF101),
        ("msrvtt", "CLIPSIM (table 1)", MSRVTT),
        ("videos", "anybody's folder of videos", VIDEOS),
        ("reference", "with and without reference (table 3)", REFERENCE),
    ):
        parser = kind(name, help, description)
        _add_output(parser)
        _add_lists(parser, name, whole)
        _add_networks(parser, name, whole)
        _add_sampling(parser, whole, real)
        if name != "videos":
            _add_generation(parser, whole, real, instead="" if name == "reference" else "videos")
        _add_machine(parser)
    parser = kind("diorama", "does mini do what it is told", DIORAMA)
    _add_output(parser)
    _add_diorama(parser, whole, real)
    _add_generation(parser, whole, real, instead="true-clips")
    _add_machine(parser)
    parser = kind("control", "what steers a video (figure 3)", CONTROL)
    _add_output(parser)
    _add_control(parser, whole, real)
    _add_generation(parser, whole, real, instead="")
    _add_machine(parser)
    for name, help, description in (
        ("interpolation", "flow, slerp or blending (figure 6)", INTERPOLATION),
        ("decoder", "video or image decoder (figure 7)", DECODER),
    ):
        parser = kind(name, help, description)
        _add_output(parser)
        _add_clips(parser, name, whole, real)
        _add_machine(parser)
    compare = kind("compare", "two results side by side", COMPARE)
    compare.set_defaults(run=_compare)
    compare.add_argument("first", metavar="A.json")
    compare.add_argument("second", metavar="B.json")
    compare.add_argument(
        "--allow", action="append", default=[], metavar="KEY", help="may differ, such as seeds or versions.torch"
    )
    _add_study(commands, whole)
    gallery = commands.add_parser("gallery", help="pictures of what a pipeline does", description=GALLERY)
    gallery.set_defaults(run=_later("gallery"), num_frames=16, fps=None)
    _add_output(gallery)
    _add_generation(gallery, whole, real, instead="")
    _add_machine(gallery)


# Options


def _add_output(parser: Any) -> None:
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FOLDER", help="results; the same folder resumes")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _add_lists(parser: Any, name: str, whole: Whole) -> None:
    add = parser.add_argument
    if name == "videos":
        add("folder", type=Path, metavar="FOLDER")
        add(
            "--prompts", type=Path, metavar="FILE", help="one a line by the videos' names, or a .csv with columns file, caption"
        )
        add("--references", type=Path, metavar="FOLDER", help="reference images, named as the videos")
        return
    if name == "ucf101":
        add("--setting", choices=("zero-shot", "fine-tuned"), default="zero-shot", help="what the pipeline has seen of UCF-101")
        add("--prompts", type=Path, metavar="FILE", help="one a class in class order: PYoCo's list, yours, or classInd.txt")
        add("--classes", type=Path, metavar="FILE", help="classInd.txt, for --split")
        add("--split", type=Path, metavar="FILE", help="trainlist01.txt or the like, whose mix of classes is followed")
        count = "videos to generate (default 10,000)"
    else:
        add("--annotations", type=Path, metavar="FILE", help="test_videodatainfo.json or its zip")
        count = "captions, evenly spaced (default: all)"
    if name == "reference":
        add("--prompts", type=Path, metavar="FILE", help="one a line, instead of --annotations")
        count = "prompts (default 1,000 of --annotations, all of --prompts, 64 of Diorama)"
    add("--count", type=whole(1, 10_000_000), metavar="N", help=count)


def _add_diorama(parser: Any, whole: Whole, real: Real) -> None:
    add = parser.add_argument
    add("--count", type=whole(1, 100_000), default=500, metavar="N", help="prompts (default 500)")
    add("--num-frames", type=whole(2, 256), default=16, metavar="N", help="so many frames (default 16)")
    add("--fps", type=real(0.1, 960), help="default: the model's; of true clips 4")
    add("--batch", type=whole(1, 1024), default=8, metavar="N", help="videos in memory at once (default 8)")


def _add_control(parser: Any, whole: Whole, real: Real) -> None:
    add = parser.add_argument
    add("--count", type=whole(1, 100_000), default=16, metavar="N", help="scenes, ten videos each (default 16)")
    add("--pictures", type=Path, metavar="FOLDER", help="images of any kind to be references too")
    add("--num-frames", type=whole(2, 256), default=16, metavar="N", help="so many frames (default 16)")
    add("--fps", type=real(0.1, 480), help="the slower of the two rates (default: the model's)")


def _add_networks(parser: Any, name: str, whole: Whole) -> None:
    group = parser.add_argument_group("feature networks (see videogen evaluate --help)")
    group.add_argument("--c3d", type=Path, metavar="FILE", help="for Inception Score")
    group.add_argument("--i3d", type=Path, metavar="FILE", help="for FVD, with --real")
    group.add_argument("--real", type=Path, metavar="FOLDER", help="real videos, or the real.safetensors of an earlier run")
    group.add_argument("--real-split", type=Path, metavar="FILE", help="take only the videos of such a list as trainlist01.txt")
    group.add_argument("--real-stride", type=whole(1, 1000), default=1, metavar="N", help="every N-th frame (default 1)")
    group.add_argument("--clip", metavar="MODEL", help="for CLIPSIM: a folder or hub id")
    if name in ("videos", "reference"):
        group.add_argument(
            "--in-domain", type=Path, metavar="RUNS",
            help="instead of these: networks of Diorama, from the folder of mini's runs; never comparable with the paper's",
        )  # fmt: skip


def _add_sampling(parser: Any, whole: Whole, real: Real) -> None:
    group = parser.add_argument_group("how videos are measured")
    group.add_argument("--num-frames", type=whole(2, 256), default=16, metavar="N", help="so many frames (default 16)")
    group.add_argument("--stride", type=whole(1, 1000), default=1, metavar="N", help="every N-th frame (default 1)")
    group.add_argument("--start", type=whole(0, 10_000), default=0, metavar="N", help="from frame N on (default 0)")
    group.add_argument("--size", type=whole(16, 4096), default=256, help="short side resized, centre cropped (default 256)")
    group.add_argument(
        "--fps", type=real(0.1, 960), help="of videos that do not say theirs; of generated ones (default: model's)"
    )
    group.add_argument("--skip-bad", action="store_true", help="leave out videos that cannot be used, and count them")
    group.add_argument("--batch", type=whole(1, 1024), default=8, metavar="N", help="videos in memory at once (default 8)")


def _add_generation(parser: Any, whole: Whole, real: Real, *, instead: str) -> None:
    """instead: what may be measured instead of a model."""
    group = parser.add_argument_group("videos", "Generated by a pipeline where they are missing in OUTPUT/videos.")
    which = group.add_mutually_exclusive_group(required=True) if instead else group
    which.add_argument("--model", required=not instead, help='a pipeline folder, a hub id or "mini"')
    if instead == "true-clips":
        help = "judge Diorama's own clips of SIZE pixels: how good the checker is"
        which.add_argument("--true-clips", type=whole(16, 1024), metavar="SIZE", help=help)
    if instead == "videos":
        which.add_argument("--videos", type=Path, metavar="FOLDER", help="take these instead, one a prompt by their names")
        group.add_argument("--reference", choices=("generated", "none"), default="generated", help="default: generated")
    group.add_argument("--seed", type=whole(0, 2**63 - 1), default=0, help="of the first video (default 0); then seed + 1 ...")
    group.add_argument("--steps", type=whole(1, 500), metavar="N", help="denoising steps of every stage (default: the model's)")
    group.add_argument("--guidance-scale", type=real(0, 100), metavar="X", help="default: the model's")
    group.add_argument("--lossless", action="store_true", help="keep videos as PNGs, not as .mp4")
    group.add_argument("--generate-batch", type=whole(1, 1024), default=1, metavar="N", help="videos made at once (default 1)")


def _add_clips(parser: Any, name: str, whole: Whole, real: Real) -> None:
    frames = 31 if name == "interpolation" else 16
    add = parser.add_argument
    add("--model", required=True, help='a pipeline folder, a hub id or "mini"')
    add("--clips", default="diorama", metavar="SOURCE", help='"diorama" (held-out clips, default) or a folder of real videos')
    add("--count", type=whole(1, 1_000_000), metavar="N", help="clips (default: 24 of Diorama, all of a folder)")
    add("--num-frames", type=whole(2, 256), default=frames, metavar="N", help=f"of a clip (default {frames})")
    add("--stride", type=whole(1, 1000), default=1, metavar="N", help="every N-th frame of real videos (default 1)")
    add("--start", type=whole(0, 10_000), default=0, metavar="N", help="from frame N of real videos on (default 0)")
    add("--fps", type=real(0.1, 960), default=8.0, help="of Diorama's clips, and of videos that do not say theirs (default 8)")
    add("--size", type=whole(16, 4096), help="side of a frame (default: the pipeline's)")
    add("--seed", type=whole(0, 2**63 - 1), default=0, help="default 0")
    add("--lpips", type=Path, metavar="FOLDER", help="weights of LPIPS")
    add("--skip-bad", action="store_true", help="leave out videos that cannot be used, and count them")
    if name == "decoder":
        add("--degradation", type=real(0, 1), default=1.0, metavar="X", help="strength (default 1, as published)")


def _add_machine(parser: Any) -> None:
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: cuda where there is one")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the pipeline")


def _later(name: str) -> Run:
    """Runs `handlers.NAME`, whose imports are heavy."""

    def run(options: argparse.Namespace) -> None:
        getattr(importlib.import_module("videogen.evaluation.handlers"), name)(options)

    return run


# study


def _add_study(commands: Any, whole: Whole) -> None:
    study = commands.add_parser(
        "study", help="a user study", description="The user study of section 4.4: build its page, report."
    )
    kinds = study.add_subparsers(title="steps", metavar="STEP", required=True)
    build = kinds.add_parser(
        "build", help="make the page for annotators",
        description="A blinded page that plays in a browser without a server: FOLDER/public is theirs, FOLDER/key.json is not.",
    )  # fmt: skip
    add = build.add_argument
    add("folders", nargs="+", type=Path, metavar="FOLDER", help="two or more, with equally named videos; the first is ours")
    add("-o", "--output", required=True, type=Path, metavar="FOLDER", help="must not exist yet")
    add("--prompts", type=Path, metavar="FILE", help="one a line by the names of the first folder, or a .csv (file, caption)")
    add("--question", action="append", default=[], metavar="ID=TEXT", help="instead of the paper's two; may be repeated")
    add("--ties", action="store_true", help='"no difference" is an answer too (the paper: not)')
    add("--count", type=whole(1, 10_000), metavar="N", help="so many prompts, drawn (the paper: 30; default: all)")
    add("--seed", type=whole(0, 2**63 - 1), help="default: drawn; who knows it can undo the blinding")
    build.set_defaults(run=_study_build)
    report = kinds.add_parser(
        "report", help="join the annotators' answers",
        description="Preference rates with intervals, agreement between annotators, and Figure 8 as a picture.",
    )  # fmt: skip
    add = report.add_argument
    add("answers", nargs="+", type=Path, metavar="ANSWERS", help="exported .json files, or folders of them")
    add("--key", required=True, type=Path, metavar="FILE", help="the key.json of the study")
    add("-o", "--output", required=True, type=Path, metavar="REPORT.json", help="the picture lies beside it as .png")
    add("--overwrite", action="store_true", help="replace a report that exists")
    report.set_defaults(run=_study_report)


# What needs no network


def _compare(options: argparse.Namespace) -> None:
    from videogen.evaluation.result import compare, read_result

    first, second = read_result(options.first), read_result(options.second)
    print(compare(first, second, (options.first, options.second), options.allow))


def _study_build(options: argparse.Namespace) -> None:
    from videogen.evaluation.study import QUESTIONS, build_study

    asked = dict(_question(text) for text in options.question)
    study = build_study(
        options.folders, options.output, prompts=options.prompts, questions=asked or QUESTIONS, ties=options.ties,
        count=options.count, seed=options.seed,
    )  # fmt: skip
    for remark in study.remarks:
        print(f"videogen: note: {remark}", file=sys.stderr)
    print(f"{study.page}: {study.trials} pairs of {study.videos} videos; the key is {study.key}")


def _question(text: str) -> tuple[str, str]:
    name, separator, question = text.partition("=")
    if not (separator and name.strip() and question.strip()):
        raise UserError(f"--question must be ID=TEXT, not {text!r}")
    return name.strip(), question.strip()


def _study_report(options: argparse.Namespace) -> None:
    from videogen.evaluation.study_report import describe_study, report_study

    print(describe_study(report_study(options.key, options.answers, options.output, overwrite=options.overwrite)))
