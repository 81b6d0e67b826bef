"""Figure 8: what annotators preferred, as stacked horizontal bars. Drawn with PIL, which is there anyway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

_SCALE = 2  # everything below is in points of a picture drawn twice as large
_WIDTH, _MARGIN, _LABEL, _BAR, _GAP = 860, 36, 120, 34, 14
_TITLE = 30  # height of a pair's line of names
_PAPER, _INK, _SOFT = "#ffffff", "#24282b", "#6b7377"
_FIRST, _TIE, _SECOND = "#1d6763", "#d5d8d6", "#d8a35d"


def draw_preferences(comparisons: Sequence[Mapping[str, Any]], caption: str) -> Image.Image:
    """RGB. A group a pair of systems, a bar a question: the first system, no difference, the second, as shares of all answers.

    comparisons: as in the details of `report_study`. The whisker is the 95% Wilson interval of the first system's share.
    """
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for entry in comparisons:
        groups.setdefault(tuple(entry["systems"]), []).append(entry)
    rows = len(comparisons)
    height = 2 * _MARGIN + len(groups) * (_TITLE + _GAP) + rows * (_BAR + _GAP)
    image = Image.new("RGB", (_WIDTH * _SCALE, height * _SCALE), _PAPER)
    sheet = _Sheet(ImageDraw.Draw(image))
    y = _MARGIN - 8
    for (first, second), entries in groups.items():
        left, right = _MARGIN + _LABEL, _WIDTH - _MARGIN
        half = (right - left) / 2 - 8
        sheet.text(left, y + _TITLE / 2, sheet.fitted(first, half), _FIRST, "lm", 16)
        sheet.text(right, y + _TITLE / 2, sheet.fitted(second, half), "#94621b", "rm", 16)
        y += _TITLE
        for entry in entries:
            _bar(sheet, entry, y)
            y += _BAR + _GAP
        y += _GAP
    whiskers = "95% Wilson intervals of the share on the left"
    sheet.text(_MARGIN + _LABEL, height - _MARGIN + 6, f"{caption}; lines: {whiskers}", _SOFT, "lm", 12)
    return image


def _bar(sheet: _Sheet, entry: Mapping[str, Any], y: float) -> None:
    first, second = entry["systems"]
    left, right = _MARGIN + _LABEL, _WIDTH - _MARGIN
    span = right - left
    sheet.text(left - 12, y + _BAR / 2, sheet.fitted(entry["question"], _LABEL - 16, 14), _INK, "rm", 14)
    if not entry["answers"]:
        sheet.box(left, y, right, y + _BAR, "#f0f1f0")
        sheet.text(left + span / 2, y + _BAR / 2, "no answers", _SOFT, "mm", 14)
        return
    x = float(left)
    shares = (entry["preferred"][first], entry["no_difference"], entry["preferred"][second])
    for count, fill, ink, place in zip(
        shares, (_FIRST, _TIE, _SECOND), ("#ffffff", _INK, "#2c1d06"), ("lm", "mm", "rm"), strict=True
    ):
        width = span * count / entry["answers"]
        sheet.box(x, y, x + width, y + _BAR, fill)
        if width > 46:
            at = {"lm": x + 10, "mm": x + width / 2, "rm": x + width - 10}[place]
            sheet.text(at, y + _BAR / 2, f"{count / entry['answers']:.0%}", ink, place, 15)
        x += width
    low, high = (left + span * bound for bound in entry["intervals"][first])
    sheet.box(low, y + _BAR + 3, high, y + _BAR + 4.5, _INK)
    for end in (low, high):
        sheet.box(end - 0.75, y + _BAR + 1, end + 0.75, y + _BAR + 6.5, _INK)


class _Sheet:
    """Drawing in points rather than pixels."""

    def __init__(self, pen: ImageDraw.ImageDraw) -> None:
        self.pen = pen

    def box(self, left: float, top: float, right: float, bottom: float, fill: str) -> None:
        """Nothing where it would be narrower than a pixel."""
        corners = [round(value * _SCALE) for value in (left, top, right, bottom)]
        if corners[2] > corners[0]:
            self.pen.rectangle((corners[0], corners[1], corners[2] - 1, corners[3] - 1), fill=fill)

    def text(self, x: float, y: float, text: str, fill: str, anchor: str, size: int) -> None:
        self.pen.text((x * _SCALE, y * _SCALE), text, fill=fill, anchor=anchor, font=_font(size))

    def fitted(self, text: str, width: float, size: int = 16) -> str:
        """In one line, cut where it is wider than that; what PIL's built-in font lacks becomes "?"."""
        text = "".join(char if char.isprintable() and ord(char) < 0x250 else "?" for char in text)[:200]
        if self.pen.textlength(text, font=_font(size)) <= width * _SCALE:
            return text
        while text and self.pen.textlength(text + "...", font=_font(size)) > width * _SCALE:
            text = text[:-1]
        return text + "..."


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * _SCALE)
