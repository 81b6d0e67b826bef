"""Data on disk and data to look at (section 4.1)."""

from __future__ import annotations

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw

from videogen.config import UserError
from videogen.data import tokenizer
from videogen.data.clips import ClipSource
from videogen.data.diorama import VOCABULARY, Diorama


def contact_sheet(source: ClipSource, count: int = 24, *, columns: int = 3, frames: int = 4) -> Image.Image:
    """The first `count` clips, each as a strip of `frames` frames spread over its length with its caption below."""
    clips = [source.clip(index) for index in range(count)]
    _, height, width, _ = clips[0].frames.shape
    wrap = max(20, frames * width // 7)
    note = 30
    cell_w, cell_h = frames * width + 8, height + note + 8
    sheet = Image.new("RGB", (columns * cell_w + 8, -(-count // columns) * cell_h + 8), (250, 250, 248))
    pen = ImageDraw.Draw(sheet)
    for i, clip in enumerate(clips):
        x, y = 8 + i % columns * cell_w, 8 + i // columns * cell_h
        for j in range(frames):
            at = round(j * (len(clip.frames) - 1) / max(frames - 1, 1))
            sheet.paste(Image.fromarray(clip.frames[at]), (x + j * width, y))
        text = "\n".join(textwrap.wrap(f"{clip.caption} ({clip.fps:g} fps)", wrap)[:2])
        pen.text((x + 2, y + height + 2), text, fill=(30, 30, 30))
    return sheet


def preview_diorama(output: Path, count: int = 24, size: int = 128, seed: int = 0) -> None:
    """Write a PNG contact sheet of Diorama. Raises UserError where it cannot be written."""
    if count < 1:
        raise UserError(f"a contact sheet shows at least one clip, not {count}")
    sheet = contact_sheet(Diorama(size, seed=seed), count)
    try:
        sheet.save(output, format="PNG")
    except OSError as error:
        raise UserError(f"cannot write {output}: {error}") from None


def write_tokenizer(output: Path) -> None:
    """Write mini's tokenizer, made of Diorama's vocabulary, as a folder. Raises UserError where it cannot be written."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        tokenizer.write_tokenizer(output, VOCABULARY)
    except OSError as error:
        raise UserError(f"cannot write the tokenizer to {output}: {error}") from None
