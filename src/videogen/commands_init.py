"""The option of `videogen init` (section 3.5): Stable Diffusion becomes a VideoGen folder. Help imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from videogen.config import UserError

INIT = """\
Write a whole VideoGen folder from Stable Diffusion 1.x or 2.x: the base network is its UNet made pseudo-3-D, each
super-resolution network starts from the one before, the video decoder is its image decoder made pseudo-3-D. The latent flow
network and the refiner are new. Until they are trained, take `videogen generate --temporal-factor 1`.

What became of every tensor is printed in short and lies in FOLDER/initialization.json by name."""


def add_init(commands: Any) -> None:
    """Add `init` to the subparsers `commands`."""
    parser = commands.add_parser("init", help="make a pipeline folder of Stable Diffusion", description=INIT)
    parser.add_argument("--from", dest="source", required=True, metavar="MODEL", help="Stable Diffusion folder or hub id")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="the pipeline folder, new")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float16", help="on disk (default float16)"
    )
    parser.set_defaults(run=_init)


def _init(arguments: argparse.Namespace) -> None:
    output = Path(arguments.output)
    if output.exists():
        raise UserError(f"{output} exists; choose another output")
    if not output.parent.is_dir():
        raise UserError(f"cannot write {output}: there is no folder {output.parent}")
    from videogen.models.stable_diffusion import describe, initialize_folder

    for line in describe(initialize_folder(arguments.source, output, arguments.dtype)):
        print(line)
    print(f"{output}: complete")
