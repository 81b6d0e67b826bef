"""What a run tells while it goes on: log.jsonl, TensorBoard and a line of progress (no section of the paper)."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from videogen.config import LoopConfig

_LINES_APART = 10  # where there is no terminal, a line of progress comes with every tenth line of the log


class Progress:
    """log.jsonl, TensorBoard if it is installed, and the line of progress."""

    def __init__(self, output: Path, loop: LoopConfig, step: int, *, quiet: bool) -> None:
        self.output, self.loop, self.first, self.quiet = output, loop, step, quiet
        self.board: Any = None

    def __enter__(self) -> Progress:
        terminal = sys.stderr.isatty() and not self.quiet
        self.bar = tqdm(total=self.loop.steps, initial=self.first, desc=self.output.name, unit="step", disable=not terminal)
        self.begin = time.perf_counter()
        self.terminal = terminal
        if not self.quiet:
            self.board = _tensorboard(self.output / "tensorboard", self.first)
            _truncate_log(self.output / "log.jsonl", self.first)
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()
        if self.board is not None:
            self.board.close()

    def write(self, step: int, facts: dict[str, float]) -> None:
        """What happened in step `step` (from 1), if it is one to log."""
        self.bar.update()
        every = self.loop.log_every
        if self.quiet or (step % every and step != self.loop.steps):
            return
        with (self.output / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **facts}) + "\n")
        for name, value in facts.items() if self.board is not None else ():
            self.board.add_scalar(name, value, step)
        self.bar.set_postfix_str(f"loss {facts['loss']:.4g}")
        if not self.terminal and (step % (every * _LINES_APART) == 0 or step == self.loop.steps):
            rate = (step - self.first) / (time.perf_counter() - self.begin)
            left = tqdm.format_interval((self.loop.steps - step) / rate)
            print(
                f"{self.output.name}: step {step}/{self.loop.steps}, loss {facts['loss']:.4g}, {rate:.2f} steps/s, {left} left",
                file=sys.stderr,
                flush=True,
            )


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # the extra "train" is not installed
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)


def _truncate_log(path: Path, step: int) -> None:
    """Drop what a run wrote after the checkpoint that it goes on from, and a line cut short."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    stage = path.with_name(f".{path.name}.partial")
    stage.write_text("".join(kept), encoding="utf-8")
    stage.replace(path)
