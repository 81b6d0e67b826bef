"""What the benchmarks share: medians, interleaved timing, a table and a JSON file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def parser(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """With the options that every benchmark has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--repeats", type=int, default=repeats, help=f"rounds; medians are over them (default {repeats})")
    made.add_argument("--json", type=Path, metavar="FILE", help="also write the rows and the machine there")
    return made


def interleaved(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, one of each a round after one unmeasured round, so that all meet the same load of the machine."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for rehearsal in (True, *[False] * repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if not rehearsal:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def measured_process(command: Sequence[str]) -> tuple[float, float]:
    """Run a command: (wall seconds, peak resident memory in GB). Ends the benchmark where it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"`{' '.join(command[2:5])} ...` ended with {process.returncode}")
    return seconds, resident_gigabytes(usage)


def resident_gigabytes(usage: resource.struct_rusage) -> float:
    """Peak resident memory, of a process or (RUSAGE_SELF) of this one so far."""
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def ratio(seconds: Sequence[float], reference: Sequence[float]) -> float:
    """Median of the ratios of each round."""
    return statistics.median(a / b for a, b in zip(seconds, reference, strict=True))


def report(rows: Sequence[Row], options: argparse.Namespace) -> None:
    """Print the rows (all with the same keys) as a table, and write them where `--json` says."""
    heads = list(rows[0])
    lines = [heads, *([_cell(row[head]) for head in heads] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    lines.insert(1, ["-" * width for width in widths])
    left = [isinstance(rows[0][head], str) for head in heads]
    for line in lines:
        cells = zip(line, widths, left, strict=True)
        print("  ".join(cell.ljust(width) if text else cell.rjust(width) for cell, width, text in cells).rstrip())
    if options.json is not None:
        asked = {key: str(value) for key, value in vars(options).items() if key != "json"}
        options.json.write_text(json.dumps({"rows": rows, "options": asked, "machine": machine()}, indent=1) + "\n")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    versions = {name: metadata.version(name) for name in ("torch", "diffusers")}
    torch = sys.modules.get("torch")
    gpu = torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None
    return {"cpus": os.cpu_count(), "gpu": gpu, "system": platform.platform(), "python": platform.python_version(), **versions}
