"""Clips of Diorama a second, drawn by one or more processes. Aim: 30 clips of 16 frames of 256x256 a second on 2 cores."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from multiprocessing.synchronize import Barrier

from measuring import Row, parser, report

from videogen.data.diorama import Diorama

source: Diorama  # of a worker


def start(size: int, frames: int, flow: bool, ready: Barrier) -> None:
    global source
    source = Diorama(size, frames, flow=flow)
    source.clip(0)
    ready.wait(timeout=300)


def draw(index: int) -> int:
    """Draw a clip; only its length travels back, as in training only batches do."""
    return len(source.clip(index).frames)


def rates(size: int, frames: int, flow: bool, processes: int, clips: int, repeats: int) -> list[float]:
    """Clips a second, `repeats` times, with workers that are warm."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(processes + 1)
    found = []
    with context.Pool(processes, start, (size, frames, flow, ready)) as pool:
        ready.wait(timeout=300)
        for turn in range(repeats):
            begin = time.perf_counter()
            for _ in pool.imap_unordered(draw, range(turn * clips, (turn + 1) * clips)):
                pass
            found.append(clips / (time.perf_counter() - begin))
    return found


def main() -> None:
    arguments = parser(__doc__, repeats=3)
    arguments.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128, 256], help="pixels (default 32 64 128 256)")
    arguments.add_argument("--num-frames", type=int, default=16)
    arguments.add_argument(
        "--processes", type=int, nargs="+", default=[1, os.cpu_count() or 1], help="default: 1 and all cores"
    )
    arguments.add_argument("--clips", type=int, default=60, help="a round (default 60)")
    arguments.add_argument("--flow", action="store_true", help="with exact optical flow")
    options = arguments.parse_args()
    rows: list[Row] = []
    for size in options.sizes:
        for processes in dict.fromkeys(options.processes):
            found = rates(size, options.num_frames, options.flow, processes, options.clips, options.repeats)
            clip = f"{options.num_frames}x{size}x{size}"
            rows.append({"clip": clip, "processes": processes, "clips a second": statistics.median(found)})
    report(rows, options)


if __name__ == "__main__":
    main()
