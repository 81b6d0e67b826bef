"""Frames side by side: what the ablations show beside their tables (Figures 6 and 7, Table 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from videogen.files import staging

Rows = Mapping[str, Sequence[np.ndarray]]
"""Name of a row -> its frames from left to right, uint8 (H, W, 3)."""

_MARGIN, _LINE, _PAPER, _INK = 8, 18, (250, 250, 248), (30, 30, 30)


def side_by_side(groups: Sequence[tuple[str, Rows]], width: int = 128) -> Image.Image:
    """One picture: each group has a title and rows of frames with their names to the left; frames are `width` pixels wide."""
    drawn = [(title, {name: [_shrunk(frame, width) for frame in rows[name]] for name in rows}) for title, rows in groups]
    left = _MARGIN + 7 * max(len(name) for _, rows in drawn for name in rows)
    columns = max(len(frames) for _, rows in drawn for frames in rows.values())
    rows_height = sum(frames[0].height + 2 for _, rows in drawn for frames in rows.values())
    height = rows_height + len(groups) * (_LINE + _MARGIN) + _MARGIN
    sheet = Image.new("RGB", (left + columns * (width + 2) + _MARGIN, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    y = _MARGIN
    for title, rows in drawn:
        pen.text((_MARGIN, y), _plain(title), fill=_INK)
        y += _LINE
        for name, frames in rows.items():
            pen.text((_MARGIN, y + frames[0].height // 2 - 6), _plain(name), fill=_INK)
            for column, frame in enumerate(frames):
                sheet.paste(frame, (left + column * (width + 2), y))
            y += frames[0].height + 2
        y += _MARGIN
    return sheet


def _shrunk(frame: np.ndarray, width: int) -> Image.Image:
    picture = Image.fromarray(frame)
    height = max(1, round(picture.height * width / picture.width))
    return picture.resize((width, height), Image.Resampling.BILINEAR if width < picture.width else Image.Resampling.NEAREST)


def _plain(text: str) -> str:
    """What PIL's built-in font can draw."""
    return text.encode("ascii", "replace").decode()[:160]


def spread(frames: np.ndarray, count: int) -> list[np.ndarray]:
    """`count` frames of (F, H, W, 3), or all of fewer, evenly spaced from the first to the last."""
    return list(frames[np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown, with columns padded to be read as plain text too."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    rule = " | ".join("-" * width for width in widths)
    return "\n".join(f"| {line} |" for line in (lines[0], rule, *lines[1:]))


def write_picture(picture: Image.Image, path: Path) -> None:
    """As PNG, or as the path's ending says; whole or not at all. Raises UserError."""
    form = {".jpg": "JPEG"}.get(path.suffix, "PNG")
    with staging(path) as folder:
        picture.save(folder / "picture", format=form, quality=88)
        (folder / "picture").replace(path)


def write_text(text: str, path: Path) -> None:
    """UTF-8, whole or not at all. Raises UserError."""
    with staging(path) as folder:
        (folder / "text").write_text(text, encoding="utf-8")
        (folder / "text").replace(path)
