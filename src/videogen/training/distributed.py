"""Ranks of a run started by torchrun, and the signals that ask a run to stop (no section of the paper).

One process is rank 0 of 1; the loop does not know the difference.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType, TracebackType

import torch
import torch.distributed as dist
from torch import Tensor

from videogen.config import UserError

_SAME_REQUEST = 0.5  # seconds: torchrun passes on the Ctrl-C that the terminal has already delivered


@dataclass(frozen=True)
class Ranks:
    """This process (`rank` of `size`) and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean of `values` (float, any shape, on `device`) over all ranks, the same on each."""
        if self.size > 1:
            dist.all_reduce(values)
            values = values / self.size
        return values

    def wait(self) -> None:
        """Return when every rank has come here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def ranks(device: str) -> Iterator[Ranks]:
    """Join the process group that torchrun's environment describes, if any; `device` is "auto", "cpu" or "cuda".

    A group that is already there is used and left alone. On an error the group is not taken down, since the peers may be
    inside a collective: the process ends, their connection breaks, and torchrun ends the rest.
    Raises UserError when CUDA is asked for and absent.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError('loop.device is "cuda" but torch sees no CUDA device; set it to "cpu" or "auto"')
    cuda = device != "cpu" and torch.cuda.is_available()
    where = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(where)
    ours = "WORLD_SIZE" in os.environ and not dist.is_initialized()
    if ours:
        dist.init_process_group("nccl" if cuda else "gloo")
    if dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size(), where)
    else:
        yield Ranks(0, 1, where)
    if ours:
        dist.destroy_process_group()


class StopRequest:
    """Ctrl-C or SIGTERM inside the `with`: the first is noted in `signal`, a second ends the process at once.

    Outside the main thread Python delivers no signals, and nothing is installed.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._since = 0.0
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.signal:
            self.signal, self._since = number, now
        elif now - self._since > _SAME_REQUEST:
            os._exit(128 + number)

    @property
    def exit_code(self) -> int:
        """143 for SIGTERM, 130 for Ctrl-C; SIGTERM's where another rank got the signal."""
        return 128 + (self.signal or signal.SIGTERM)
