"""The command line: parse, check, then import the one module needed.

argparse rather than tyro: importing tyro alone takes as long (0.14 s of CPU time) as the whole of `--help` takes with argparse
(0.12 s), and every complaint must be one line with exit code 2. Nothing at the top of this file may import torch or numpy.
"""

from __future__ import annotations

import argparse
import gc
import io
import os
import re
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import videogen
from videogen.commands_init import add_init
from videogen.config import MAX_ETA, MAX_STEPS, SCHEDULERS, UserError
from videogen.evaluation.commands import add_commands
from videogen.restoration.commands import add_commands as add_restoration

if TYPE_CHECKING:
    from videogen.generation import GenerationOptions, Job

Number = TypeVar("Number", int, float)
_MAX_PROMPTS_FILE = 1 << 24  # bytes

GENERATE_HELP = """\
Turn prompts into videos: a reference image is made from the prompt, three diffusion networks make 16 frames of it, temporal
super-resolution puts new frames between them (16 become 121), a video decoder makes them pixels.

The output's ending decides what is written: .mp4, .webm, .gif, or a folder of PNGs (no ending, or a final "/"). A JSON beside
it (ball.mp4: ball.json) says how it was made; the file itself carries the same.

Several videos are numbered before the ending: -o ball.mp4 becomes ball-0.mp4, ball-1.mp4 ..., -o frames/ becomes frames-0/,
frames-1/ ..., prompt by prompt. Video i has the seed SEED + i and can be made again alone by it."""

GENERATE_EXAMPLES = """\
examples:
  videogen generate "a red ball bounces over a meadow at sunset" -o ball.mp4
  videogen generate "a blue star spins over the sea" --reference photo.png --seed 7 -o star.gif
  videogen generate --prompts-file prompts.txt --num-videos 4 --temporal-factor 1 -o videos/all.mp4"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (default: the process's own) and return its exit code: 0, 2 on bad input, 130 on Ctrl-C, 141 when
    nobody reads its output any more."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an ASCII terminal must not make an emoji a crash
    try:
        options = _parser().parse_args(arguments)
        _keep_freed_memory()
        options.run(options)
        sys.stdout.flush()
    except UserError as error:
        _say(str(error))
        return 2
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except BrokenPipeError:  # `... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains once more at its end
        return 141
    return 0


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed. Handed back, it is cleared again for the next layer: a sixth of the time of 121 frames
    (docs/log.md)."""
    import ctypes

    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_max = -1, -4  # of malloc.h
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


@contextmanager
def _no_search_for_garbage() -> Iterator[None]:
    """What libraries make while they are imported stays to the end: searched for garbage again and again, it costs a fifth of
    the time of the import (docs/log.md)."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _say(text: str) -> None:
    """One line on stderr, without control characters that a prompt or a file name may hold."""
    line = "".join(char if char.isprintable() else "?" for char in text)
    print(f"videogen: {line}", file=sys.stderr, flush=True)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="videogen", description="Text to video guided by a reference image (arXiv 2309.00398).")
    parser.add_argument("--version", action="version", version=f"videogen {videogen.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_generate(commands)
    add_init(commands)
    _add_train(commands)
    _add_assemble(commands)
    _add_prepare(commands)
    add_restoration(commands, _whole)  # interpolate, enhance
    add_commands(commands, _whole, _real)  # evaluate, study
    return parser


# generate


def _add_generate(commands: Any) -> None:
    parser = commands.add_parser(
        "generate", help="make videos from prompts", description=GENERATE_HELP, epilog=GENERATE_EXAMPLES
    )
    add = parser.add_argument
    add("prompt", nargs="*", metavar="PROMPT", help="what the video shows, in quotes; several make several videos")
    add("-o", "--output", required=True, metavar="OUT", help="a .mp4, .webm or .gif, or a folder for PNGs")
    add("--prompts-file", metavar="FILE", help="more prompts, one a line (UTF-8)")
    add("--model", default="mini", help='"mini" (default, comes with the package), a pipeline folder, or a hub id')
    add(
        "--reference", default="generated", metavar="WHAT",
        help='"generated" from the prompt (default), "none", or an image file (./none for a file of such a name)',
    )  # fmt: skip
    add("--reference-model", metavar="MODEL", help="a text-to-image folder or hub id of diffusers that makes the reference")
    add("--negative-prompt", metavar="TEXT", help="what the video should not show")
    add("--seed", type=_whole(0, 2**63 - 1), default=0, help="default 0")
    add("--num-videos", type=_whole(1, 10_000), default=1, metavar="N", help="videos a prompt (default 1)")
    add("--num-frames", type=_whole(1, 256), default=16, metavar="N", help="before temporal super-resolution (default 16)")
    add("--temporal-factor", type=int, choices=(1, 2, 4, 8), default=8, help="n frames become (n-1)*factor+1 (default 8)")
    add("--fps", type=_real(0.1, 960), help="of the finished video (default: the model's)")
    add("--steps", type=_whole(1, min(MAX_STEPS.values())), metavar="N", help="of every stage (default: the model's)")
    for stage in MAX_STEPS:
        flag = stage.replace("_", "-")
        add(f"--{flag}-steps", type=_whole(1, MAX_STEPS[stage]), metavar="N", help=f"of the {flag} stage alone")
    add("--scheduler", choices=tuple(SCHEDULERS), help="takes the steps (default: the model's; lcm: for distilled models)")
    add("--guidance-scale", type=_real(0, 100), metavar="X", help="how hard to follow the prompt; 1 is off")
    add(
        "--guidance-rescale",
        type=_real(0, 1),
        metavar="X",
        help="0..1, against oversaturation (default: the model's)",
    )
    add(
        "--guidance-interval", type=_real(0, 1), nargs=2, metavar=("LOW", "HIGH"),
        help="guide only this part of the schedule, 0 clean to 1 noise (default: all, or the model's); the rest costs half",
    )  # fmt: skip
    add("--eta", type=_real(0, MAX_ETA), metavar="X", help="share of noise drawn anew in each step (default: the model's)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: cuda where there is one")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="default float32")
    add("--overwrite", action="store_true", help="replace outputs that exist")
    add("--quiet", action="store_true", help="no progress, no list of files")
    parser.set_defaults(run=_generate)


def _generate(arguments: argparse.Namespace) -> None:
    jobs, options, outputs = _checked_request(arguments)
    if arguments.model == "mini":
        _warn_of_unknown_words([*dict.fromkeys(job.prompt for job in jobs)])
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _say(f"warning: {message}")
        _make_videos(arguments, jobs, options, outputs)


def _make_videos(arguments: argparse.Namespace, jobs: list[Job], options: GenerationOptions, outputs: list[str]) -> None:
    with _no_search_for_garbage():
        _import_libraries(arguments)
        from videogen.generation import describe_model, generate, with_references
        from videogen.models.pretrained import other_scheduler
        from videogen.pipeline import VideoGenPipeline
        from videogen.video import write_video

    if arguments.reference_model is not None:
        names = {"dtype": arguments.dtype, "device": _device(arguments)}
        jobs = with_references(jobs, arguments.reference_model, options.negative_prompt, **names)
    pipe = _load(VideoGenPipeline, arguments)
    if arguments.scheduler is not None:
        pipe.scheduler = other_scheduler(pipe.scheduler, arguments.scheduler)
    origin = describe_model(arguments.model)
    with _Progress(len(jobs), arguments.quiet) as progress:
        for job, video in generate(pipe, jobs, options, origin=origin, on_step=progress.step):
            write_video(video, outputs[job.index], overwrite=arguments.overwrite)
            height, width = video.frames.shape[1:3]
            progress.done(f"{outputs[job.index]}: {len(video)} frames of {width}x{height}, {video.seconds:.1f} s")


def _checked_request(arguments: argparse.Namespace) -> tuple[list[Job], GenerationOptions, list[str]]:
    """Everything that can be wrong with a request, found out before torch is imported."""
    prompts = [_clean(prompt) for prompt in arguments.prompt]
    if arguments.prompts_file is not None:
        prompts += _read_prompts(arguments.prompts_file)
    if not prompts:
        raise UserError('no prompt: videogen generate "a red ball bounces over a meadow" -o ball.mp4')
    if not all(prompt.strip() for prompt in prompts):
        raise UserError("the prompt is empty: say what the video shows")
    if arguments.reference_model is not None and arguments.reference != "generated":
        raise UserError("--reference-model makes the reference: leave --reference out")
    from videogen.generation import GenerationOptions, Reference, make_jobs
    from videogen.video import check_output

    steps = {stage: getattr(arguments, f"{stage}_steps") or arguments.steps for stage in MAX_STEPS}
    options = GenerationOptions(
        negative_prompt=None if arguments.negative_prompt is None else _clean(arguments.negative_prompt),
        num_frames=arguments.num_frames,
        temporal_factor=arguments.temporal_factor,
        fps=arguments.fps,
        num_inference_steps={stage: count for stage, count in steps.items() if count is not None},
        guidance_scale=arguments.guidance_scale,
        guidance_rescale=arguments.guidance_rescale,
        guidance_interval=arguments.guidance_interval and tuple(arguments.guidance_interval),
        eta=arguments.eta,
    )
    jobs = make_jobs(prompts, arguments.seed, arguments.num_videos, Reference.named(arguments.reference))
    outputs = numbered_outputs(arguments.output, len(jobs))
    for output in outputs:
        check_output(output, arguments.overwrite)
    return jobs, options, outputs


def numbered_outputs(output: str, count: int) -> list[str]:
    """One name a video: ball.mp4 -> ball-0.mp4, ball-1.mp4; frames/ -> frames-0/, frames-1/. A single one keeps its name."""
    if count == 1:
        return [output]
    folder = "/" if output.endswith(("/", os.sep)) else ""
    stem, ending = os.path.splitext(output.rstrip("/" + os.sep)) if not folder else (output.rstrip("/" + os.sep), "")
    digits = len(str(count - 1))
    return [f"{stem}-{index:0{digits}d}{ending}{folder}" for index in range(count)]


def _clean(prompt: str) -> str:
    return prompt.encode("utf-8", "replace").decode("utf-8").replace("\0", " ")  # undecodable arguments become "?"


def _read_prompts(path: str) -> list[str]:
    from videogen.files import open_regular

    with open_regular(path) as file:
        data = file.read(_MAX_PROMPTS_FILE + 1)
    if len(data) > _MAX_PROMPTS_FILE:
        raise UserError(f"{path} is larger than {_MAX_PROMPTS_FILE >> 20} MiB: split it")
    prompts = [_clean(line) for line in data.decode("utf-8-sig", "replace").splitlines() if line.strip()]
    if not prompts:
        raise UserError(f"{path} holds no prompt: one a line")
    return prompts


def _warn_of_unknown_words(prompts: Sequence[str]) -> None:
    from videogen.data import diorama

    known = {word.lower() for entry in diorama.VOCABULARY for word in entry.split()}
    unknown = list(dict.fromkeys(word for prompt in prompts for word in _words(prompt) if word not in known))
    if not unknown:
        return
    named = ", ".join(word[:40] for word in unknown[:8]) + (f" and {len(unknown) - 8} more" if len(unknown) > 8 else "")
    lists = (diorama.COLOURS, diorama.SHAPES, diorama.MOTIONS, diorama.PLACES, diorama.TIMES, diorama.WEATHERS, diorama.CAMERAS)
    knows = "; ".join(", ".join(entry for entry in entries if entry) for entries in lists)
    _say(f"warning: mini does not know: {named}. It knows {knows}; slowly, quickly")


def _words(prompt: str) -> list[str]:
    """Words and symbols such as emoji in lower case; punctuation is left out."""
    parts = re.findall(r"\w+|[^\w\s]", prompt.lower())
    return [part for part in parts if not all(unicodedata.category(char)[0] in "PCM" for char in part)]


def _import_libraries(arguments: argparse.Namespace) -> None:
    if not arguments.quiet:
        _say(f"loading {arguments.model}")
    import torch
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()  # there is one bar, ours
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch sees no CUDA device here: take --device cpu")


def _load(pipeline_class: Any, arguments: argparse.Namespace) -> Any:
    import torch

    return pipeline_class.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype)).to(_device(arguments))


def _device(arguments: argparse.Namespace) -> str:
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if arguments.device == "auto" else str(arguments.device)


class _Progress:
    """A bar a video, on a terminal only: the stage, the step, the time left."""

    def __init__(self, count: int, quiet: bool) -> None:
        self.count, self.quiet, self.finished = count, quiet, 0
        self.bar: Any = None

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def step(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """The pipeline's `callback_on_step_end`."""
        place = f"video {self.finished + 1} of {self.count}, " if self.count > 1 else ""
        if self.bar is None:
            from tqdm import tqdm

            layout = "{desc}: step {n_fmt}/{total_fmt} |{bar:30}| {remaining} left"
            disable = True if self.quiet else None  # None: only where stderr is no terminal
            self.bar = tqdm(
                total=pipe.num_timesteps, desc=f"{place}{pipe.stage}", bar_format=layout, disable=disable, leave=False
            )
        self.bar.set_description_str(f"{place}{pipe.stage}", refresh=False)
        self.bar.update(1)
        return tensors

    def done(self, line: str) -> None:
        self._close()
        self.finished += 1
        if not self.quiet:
            print(line, flush=True)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


# train, assemble, prepare


def _add_train(commands: Any) -> None:
    parser = commands.add_parser(
        "train", help="train one network", description="Train one network by a recipe; the same command resumes a stopped run."
    )
    parser.add_argument("recipe", help="a .toml file, or a recipe of the package such as mini/base")
    parser.add_argument("-o", "--output", required=True, metavar="RUN_FOLDER", help="checkpoints, logs and the network")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", type=_setting,
        help="replace a value of the recipe, such as loop.steps=100 (values as in TOML); may be repeated",
    )  # fmt: skip
    parser.set_defaults(run=_train)


def _train(arguments: argparse.Namespace) -> None:
    from videogen.config import read_recipe

    config = read_recipe(arguments.recipe, dict(arguments.set))
    output = Path(arguments.output)
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file: a run needs a folder")
    from videogen.training.trainer import train

    train(config, output)


def _add_assemble(commands: Any) -> None:
    about = "Put the networks of a chain of runs into a pipeline folder."
    parser = commands.add_parser("assemble", help="make a pipeline folder of runs", description=about)
    parser.add_argument("--from", dest="runs", required=True, metavar="RUNS_FOLDER", help="the folder that holds the runs")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="the pipeline folder")
    parser.add_argument(
        "--image-model", metavar="MODEL", help="Stable Diffusion folder or hub id, where the runs started from one (not mini)"
    )
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float16", help="on disk (default float16)")
    parser.set_defaults(run=_assemble)


def _assemble(arguments: argparse.Namespace) -> None:
    if not Path(arguments.runs).is_dir():
        raise UserError(f"there is no folder {arguments.runs}")
    from videogen.models.folders import assemble

    missing = assemble(Path(arguments.runs), Path(arguments.output), arguments.dtype, arguments.image_model)
    print(f"{arguments.output}: {'complete' if not missing else 'still without ' + ', '.join(missing)}")


def _add_prepare(commands: Any) -> None:
    parser = commands.add_parser("prepare", help="make data", description="Make what training starts from, or look at it.")
    kinds = parser.add_subparsers(title="kinds", metavar="KIND", required=True)
    diorama = kinds.add_parser("diorama", help="look at Diorama", description="A contact sheet of Diorama's captioned clips.")
    diorama.add_argument("--preview", required=True, metavar="SHEET", help="a .png")
    diorama.add_argument("--count", type=_whole(1, 1000), default=24, help="clips (default 24)")
    diorama.add_argument("--size", type=_whole(16, 1024), default=128, help="side of a frame in pixels (default 128)")
    diorama.add_argument("--seed", type=_whole(0, 2**63 - 1), default=0, help="default 0")
    diorama.add_argument("--overwrite", action="store_true", help="replace a sheet that exists")
    diorama.set_defaults(run=_prepare_diorama)
    tokenizer = kinds.add_parser("tokenizer", help="mini's tokenizer", description="Write the tokenizer of mini's CLIP.")
    tokenizer.add_argument("-o", "--output", required=True, metavar="FOLDER")
    tokenizer.set_defaults(run=_prepare_tokenizer)


def _prepare_diorama(arguments: argparse.Namespace) -> None:
    from videogen.video import check_output

    check_output(arguments.preview, arguments.overwrite, endings=(".png",))
    from videogen.data.prepare import preview_diorama

    preview_diorama(Path(arguments.preview), arguments.count, arguments.size, arguments.seed)


def _prepare_tokenizer(arguments: argparse.Namespace) -> None:
    from videogen.data.prepare import write_tokenizer

    write_tokenizer(Path(arguments.output))


# Values


def _whole(low: int, high: int) -> Callable[[str], int]:
    return _number(int, "a whole number", low, high)


def _real(low: float, high: float) -> Callable[[str], float]:
    return _number(float, "a number", low, high)


def _number(kind: type[Number], what: str, low: Number, high: Number) -> Callable[[str], Number]:
    def parse(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            value = kind(high + 1)  # no number at all: out of range too
        if not low <= value <= high:  # false for NaN too
            raise argparse.ArgumentTypeError(f"must be {what} from {low} to {high}, not {text[:40]!r}")
        return value

    return parse


def _setting(text: str) -> tuple[str, Any]:
    """KEY=VALUE, the value as TOML has it; a bare word is a string."""
    import tomllib

    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE, not {text!r}")
    try:
        table = tomllib.loads(f"value = {value.strip()}")
    except tomllib.TOMLDecodeError:
        table = {"value": value.strip()} if re.fullmatch(r"[\w./ -]+", value.strip()) else {}
    if set(table) != {"value"}:
        raise argparse.ArgumentTypeError(f"{value!r} is no TOML value")
    return key.strip(), table["value"]
