"""The options of `videogen interpolate` and `videogen enhance` (sections 3.3, 3.4). Asking for help imports nothing heavy."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from typing import Any

Whole = Callable[[int, int], Callable[[str], int]]

INTERPOLATE = """\
Put new frames between those of any real video: 2, 4 or 8 for each. Frames are encoded, temporal super-resolution (section 3.3)
makes the latents between, the video decoder their pixels. The given frames stay as they are. Nothing is put across scene cuts,
long pauses and the end: there the frame is repeated, so that the frame rate stays even."""

ENHANCE = """\
Pass any real video through the encoder and the video decoder (section 3.4), which is trained to give clean and steady frames
from degraded ones."""

BOTH = """\
Duration, true times (variable frame rates too), audio packets, colour tags and 10 bits are kept; a rotation by metadata is
applied; transparency is laid over white. The output is H.264 in .mp4, .mov and .mkv, VP9 in .webm.
What to expect of mini, which has learnt from a world of simple shapes at 128x128, is in docs/real_video.md: no wonders."""


def add_commands(commands: Any, whole: Whole) -> None:
    """Add `interpolate` and `enhance` to the subparsers `commands`. whole: argument type by its range."""
    for name, help, about in (
        ("interpolate", "more frames for a real video", INTERPOLATE),
        ("enhance", "a real video through the video decoder", ENHANCE),
    ):
        parser = commands.add_parser(name, help=help, description=f"{about}\n\n{BOTH}")
        add = parser.add_argument
        add("input", metavar="VIDEO", help="a video file")
        add("-o", "--output", required=True, metavar="OUT", help="a .mp4, .mov, .mkv or .webm")
        if name == "interpolate":
            add("--factor", type=int, choices=(2, 4, 8), default=2, help="so many times the frames (default 2)")
            add("--no-refiner", action="store_true", help="warp only; closer to the truth on real video with mini")
            add("--seed", type=whole(0, 2**63 - 1), default=0, help="default 0")
        add("--model", default="mini", help='"mini" (default, comes with the package), a pipeline folder, or a hub id')
        add("--tile", type=whole(64, 8192), default=512, metavar="N", help="pixels a side computed at once (default 512)")
        add("--no-audio", action="store_true", help="leave the audio out")
        add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: cuda where there is one")
        add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="default float32")
        add("--overwrite", action="store_true", help="replace an output that exists")
        add("--quiet", action="store_true", help="no progress")
        parser.set_defaults(run=_run, factor=1 if name == "enhance" else 2, seed=0, no_refiner=False)


def _run(options: argparse.Namespace) -> None:
    from videogen.restoration.sink import ENDINGS
    from videogen.restoration.source import open_source
    from videogen.video import check_output

    check_output(options.output, options.overwrite, endings=ENDINGS, note=False)
    with open_source(options.input):
        pass  # all that can be wrong is found before torch is imported
    notes = _restore(options)
    for note in notes:
        print(f"videogen: note: {options.input}: {note}", file=sys.stderr)
    if not options.quiet:
        print(options.output)


def _restore(options: argparse.Namespace) -> list[str]:
    import torch

    from videogen.config import UserError
    from videogen.generation import describe_model
    from videogen.restoration.restorer import Restorer
    from videogen.restoration.run import enhance_video, interpolate_video

    device = options.device
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch sees no CUDA device here: take --device cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    restorer = Restorer.from_pretrained(
        options.model,
        interpolates=options.factor > 1,
        dtype=getattr(torch, options.dtype),
        seed=options.seed,
        tile=options.tile,
    ).to(device)
    if options.no_refiner:
        restorer = dataclasses.replace(restorer, refiner=None)
    command = "enhance" if options.factor == 1 else "interpolate"
    asked: dict[str, Any] = {
        "command": command,
        "factor": options.factor,
        "seed": options.seed,
        "tile": options.tile,
        "dtype": options.dtype,
    }
    asked["refiner"] = restorer.refiner is not None
    with _Bar(options.quiet) as bar:
        common: dict[str, Any] = {
            "note": {**asked, **describe_model(options.model)},
            "audio": not options.no_audio,
            "overwrite": options.overwrite,
            "tell": bar.tell,
        }
        if options.factor == 1:
            return enhance_video(options.input, options.output, restorer, **common)
        return interpolate_video(options.input, options.output, restorer, options.factor, **common)


class _Bar:
    """Frames done and the time left, on a terminal only."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.bar: Any = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def tell(self, done: int, total: int | None) -> None:
        """Show that `done` frames are done."""
        if self.bar is None:
            from tqdm import tqdm

            layout = "frame {n_fmt}/{total_fmt} |{bar:30}| {remaining} left"
            disable = True if self.quiet else None  # None: only where stderr is no terminal
            self.bar = tqdm(total=total, bar_format=layout, disable=disable, leave=False)
        self.bar.update(done - self.bar.n)
