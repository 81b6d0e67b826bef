"""Opening files that are not trusted, and writing files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import av
from PIL import Image

from videogen.config import UserError

DECODER_ERRORS = (
    OSError, ValueError, LookupError, ArithmeticError, TypeError, AttributeError, EOFError, SyntaxError, RuntimeError,
    MemoryError, struct.error, Image.DecompressionBombError, Image.DecompressionBombWarning, av.FFmpegError,
)  # fmt: skip


def open_regular(path: str | Path) -> BinaryIO:
    """Open for reading. Anything but a regular file is refused before it can block or never ends: UserError."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UserError(f"cannot read {path}: it is not a regular file")
    return os.fdopen(handle, "rb")


@contextlib.contextmanager
def decoding(path: str | Path, what: str) -> Iterator[None]:
    """Whatever a decoder raises inside becomes one UserError: `path` is not `what`."""
    try:
        yield
    except UserError:
        raise
    except DECODER_ERRORS as error:
        raise UserError(f"{path} is not {what} that can be read ({reason(error)})") from None


@contextlib.contextmanager
def staging(place: Path) -> Iterator[Path]:
    """A new folder beside `place`, on the same file system, to write in and rename from; gone in the end.

    Failed writes inside leave as UserError.
    """
    if not place.parent.is_dir():
        raise UserError(f"cannot write {place}: there is no folder {place.parent}")
    try:
        with tempfile.TemporaryDirectory(prefix=".videogen-", dir=place.parent, ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except (OSError, av.FFmpegError) as error:
        raise UserError(f"cannot write {place}: {reason(error)}") from None


def reason(error: BaseException) -> str:
    """What went wrong, in one line and without the path."""
    text = (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__
    return text.splitlines()[0]
