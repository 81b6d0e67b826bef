"""`videogen generate` as a user meets it: a fresh process each time, so loading and encoding are in the numbers.

By default 16 frames (temporal factor 1) and 121 (factor 8) with mini. Aims on 2 cores: 20 s and 60 s, at most 3 GB.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from measuring import Row, measured_process, parser, report

PROMPT = "a red ball bounces over a meadow at sunset"


def generate(options: argparse.Namespace, factor: int, folder: Path) -> tuple[float, float]:
    """(wall seconds, peak resident GB) of one process."""
    command = [sys.executable, "-m", "videogen", "generate", PROMPT, "-o", str(folder / "out.mp4"), "--overwrite", "--quiet"]
    command += ["--model", options.model, "--num-frames", str(options.num_frames), "--temporal-factor", str(factor)]
    command += ["--device", options.device, "--dtype", options.dtype]
    command += ["--steps", str(options.steps)] if options.steps else []
    return measured_process(command)


def main() -> None:
    arguments = parser(__doc__, repeats=3)
    arguments.add_argument("--model", default="mini", help="as for videogen generate (default mini)")
    arguments.add_argument("--num-frames", type=int, default=16, help="before temporal super-resolution (default 16)")
    arguments.add_argument("--factors", type=int, nargs="+", default=[1, 8], help="temporal factors (default 1 8)")
    arguments.add_argument("--steps", type=int, help="of every stage (default: the model's)")
    arguments.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    options = arguments.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        runs = [[generate(options, factor, Path(folder)) for factor in options.factors] for _ in range(options.repeats)]
    for factor, found in zip(options.factors, zip(*runs, strict=True), strict=True):
        seconds, memory = zip(*found, strict=True)
        frames = factor * (options.num_frames - 1) + 1
        rows.append({"frames": frames, "seconds": statistics.median(seconds), "slowest": max(seconds), "peak GB": max(memory)})
    report(rows, options)


if __name__ == "__main__":
    main()
