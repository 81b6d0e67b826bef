"""The six places of Diorama under three skies (DESIGN.md section 2), painted once a clip."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from videogen.data.diorama_canvas import WORLD, Array, Canvas, Colour, Decor, smoothstep

SKY: dict[str, tuple[Colour, Colour, Colour]] = {  # zenith, middle, horizon
    "day": ((72, 142, 222), (132, 190, 238), (214, 236, 248)),
    "sunset": ((70, 62, 132), (204, 104, 122), (255, 196, 118)),
    "night": ((12, 16, 46), (28, 36, 86), (66, 78, 134)),
}
OVERCAST: dict[str, Colour] = {"day": (172, 184, 198), "sunset": (176, 132, 130), "night": (44, 50, 78)}
CLOUD: dict[str, Colour] = {"day": (255, 255, 255), "sunset": (255, 172, 142), "night": (76, 86, 132)}


def paint_sky(canvas: Canvas, rng: np.random.Generator, weather: str | None) -> None:
    """Gradient, sun or moon and stars, clouds."""
    stops = np.asarray(SKY[canvas.time], np.float32)
    grey = np.asarray(OVERCAST[canvas.time], np.float32)
    if weather:
        stops = stops + 0.72 * (grey * np.array([[0.86], [1.0], [1.12]], np.float32) - stops)
    at = np.clip(canvas.y[:, 0] / canvas.horizon, 0.0, 1.0)
    for plane, stop in zip(canvas.rgb, stops.T, strict=True):
        plane[:] = np.interp(at, (0.0, 0.55, 1.0), stop)[:, None]
    x, lift = rng.uniform(0.12, 0.88), rng.uniform(0.0, 1.0)
    stars = rng.random((90, 4))
    if canvas.time == "night" and not weather:
        _stars(canvas, stars)
    _luminary(canvas, float(x), float(lift), weather)
    _clouds(canvas, rng, weather)


def _stars(canvas: Canvas, stars: NDArray[np.float64]) -> None:
    def draw(decor: Decor) -> None:
        for x, y, size, light in stars:
            glow = 150 + 105 * light
            radius = 0.0022 + 0.0034 * size**3
            decor.ellipse(-0.4 + 1.8 * x, -0.2 + 0.72 * y, radius, radius, (glow, glow, 0.9 * glow + 25))

    canvas.decorate(draw)


def _luminary(canvas: Canvas, x: float, lift: float, weather: str | None) -> None:
    y = canvas.horizon - 0.10 - 0.04 * lift if canvas.time == "sunset" else 0.10 + 0.07 * lift
    size = {"day": 0.05, "sunset": 0.075, "night": 0.055}[canvas.time]
    glow: Colour = {"day": (255, 250, 225), "sunset": (255, 190, 96), "night": (128, 146, 210)}[canvas.time]
    disc: Colour = {"day": (255, 252, 232), "sunset": (255, 226, 142), "night": (244, 242, 222)}[canvas.time]
    reach = {"day": 0.13, "sunset": 0.30, "night": 0.13}[canvas.time]
    top, bottom = canvas.row(y - 2.6 * reach), canvas.row(y + 2.6 * reach)
    rows = canvas.y[top:bottom]
    distance = np.hypot(canvas.x - x, rows - y)
    canvas.blend(np.exp(-((distance / reach) ** 2)) * (0.2 if weather else 0.62), glow, top)
    if not weather:
        cover = np.clip((size - distance) / canvas.px + 0.5, 0.0, 1.0)
        if canvas.time == "night":  # a crescent
            bite = np.hypot(canvas.x - x - 0.42 * size, rows - y + 0.28 * size)
            cover = cover * np.clip((bite - 0.86 * size) / canvas.px + 0.5, 0.0, 1.0)
        canvas.blend(cover, disc, top)


def _clouds(canvas: Canvas, rng: np.random.Generator, weather: str | None) -> None:
    amount = rng.uniform(0.0, 0.12)
    bottom = canvas.row(canvas.horizon)
    noise = 0.58 * canvas.field(rng, 9, 20, bottom)
    noise += 0.28 * canvas.field(rng, 22, 44, bottom)
    noise += 0.14 * canvas.field(rng, 50, 90, bottom)
    if weather:
        alpha = smoothstep(0.36, 0.72, noise) * 0.55
        red, green, blue = OVERCAST[canvas.time]
        canvas.blend(alpha, (red * 0.74, green * 0.75, blue * 0.79))
        return
    fade = np.clip((canvas.horizon - canvas.y[:bottom]) / 0.25, 0.0, 1.0)
    strength = {"day": 0.92, "sunset": 0.72, "night": 0.45}[canvas.time]
    alpha = smoothstep(0.56 - amount, 0.76 - amount, noise) * fade * strength
    canvas.blend(alpha, CLOUD[canvas.time])


def paint_ground(
    canvas: Canvas, rng: np.random.Generator, far: Colour, near: Colour, contrast: float, amount: float = 1.0
) -> int:
    """A plane from the horizon to the viewer with soft patches in perspective. Returns its first row."""
    first, last = canvas.lit(far, amount), canvas.lit(near, amount)
    top = canvas.ridge(np.full_like(canvas.x, canvas.horizon), first, last, 1.0 - canvas.horizon)
    patches = 0.6 * canvas.ground_field(rng, 36, 40, top) + 0.4 * canvas.ground_field(rng, 90, 90, top) - 0.5
    near_ness = np.clip((canvas.y[top:] - canvas.horizon) / 0.1, 0.0, 1.0)
    canvas.rgb[:, top:] *= 1.0 + contrast * patches * near_ness
    return top


def haze(canvas: Canvas, colour: Colour, amount: float) -> Colour:
    """A far surface: lit, then mixed with the horizon's colour."""
    red, green, blue = (
        (1 - amount) * own + amount * sky for own, sky in zip(canvas.lit(colour), SKY[canvas.time][2], strict=True)
    )
    return red, green, blue


def paint_meadow(canvas: Canvas, rng: np.random.Generator) -> None:
    h = canvas.horizon
    canvas.ridge(
        h - 0.03 - 0.13 * canvas.line(rng, 7),
        haze(canvas, (92, 148, 124), 0.35),
        haze(canvas, (122, 170, 132), 0.5),
        0.2,
        h + 0.02,
    )
    hill = h - 0.005 - 0.075 * canvas.line(rng, 9)
    trees = [(float(x), float(s)) for x, s in zip(rng.uniform(-0.5, 1.5, 16), rng.uniform(0.6, 1.25, 16), strict=True)]

    def wood(decor: Decor) -> None:
        for x, s in trees:
            ground = float(np.interp(x, canvas.x, hill)) + 0.012
            r = 0.026 * s
            decor.box(x - 0.15 * r, ground - 1.3 * r, 0.3 * r, 1.4 * r, canvas.lit((96, 74, 52)))
            decor.ellipse(x, ground - 2.0 * r, r, 1.25 * r, canvas.lit((58, 112, 62)))
            decor.ellipse(x - 0.22 * r, ground - 2.3 * r, 0.62 * r, 0.75 * r, canvas.lit((78, 136, 72)))

    canvas.decorate(wood)
    canvas.ridge(hill, canvas.lit((120, 176, 84)), canvas.lit((104, 162, 74)), 0.1, h + 0.02)
    paint_ground(canvas, rng, (136, 190, 88), (78, 136, 56), 0.36)
    spots = rng.random((130, 3))
    tints: tuple[Colour, ...] = ((250, 248, 240), (252, 226, 120), (238, 168, 196), (206, 186, 242))

    def flowers(decor: Decor) -> None:
        for x, y, kind in spots:
            near = 0.06 + 0.94 * y**1.3
            r = 0.0022 + 0.0058 * near
            at_y = h + 0.02 + near * (1.08 - h)
            at_x = -0.4 + 1.8 * x
            decor.box(at_x - 0.15 * r, at_y, 0.3 * r, 2.2 * r, canvas.lit((70, 120, 52)))
            decor.ellipse(at_x, at_y, r, 0.8 * r, canvas.lit(tints[int(kind * 4)], 0.85))

    canvas.decorate(flowers)


def paint_desert(canvas: Canvas, rng: np.random.Generator) -> None:
    h = canvas.horizon
    mesa = smoothstep(0.52, 0.62, canvas.line(rng, 12))
    canvas.ridge(
        h - 0.015 - 0.10 * mesa, haze(canvas, (186, 128, 104), 0.35), haze(canvas, (206, 158, 128), 0.5), 0.12, h + 0.02
    )
    for step, (lift, wide, cells) in enumerate(((0.0, 0.085, 6), (-0.05, 0.075, 5))):
        crest = h - lift - wide * canvas.line(rng, cells)
        lit, shade = canvas.lit((240, 208, 150)), canvas.lit((206, 164, 110))
        if step == 1:
            paint_ground(canvas, rng, (236, 202, 144), (214, 172, 112), 0.12)
        top = canvas.ridge(crest, lit, canvas.lit((226, 188, 130)), 0.16)
        swing = canvas.line(rng, 2 * cells)
        edge = canvas.x * 2.2 * cells / 6 + 0.25 * swing
        side = smoothstep(0.42, 0.58, np.abs((edge + (canvas.y[top:] - crest) * 2.4) % 1.0 * 2 - 1))
        fall = np.clip((canvas.y[top:] - crest) / 0.012, 0.0, 1.0) * np.clip(1 - (canvas.y[top:] - crest) / 0.14, 0.0, 1.0)
        canvas.blend(side * fall * 0.75, shade, top)
    cacti = rng.random((5, 3))
    depth = np.log1p(np.maximum(canvas.y - h, 0.0) / 0.06)
    ripple = np.sin(30 * depth + 5 * canvas.line(rng, 12) + 2.5 * canvas.line(rng, 40))
    canvas.rgb *= 1 + 0.025 * ripple * np.clip((canvas.y - h - 0.07) / 0.1, 0, 1)

    def plants(decor: Decor) -> None:
        for i, (x, y, s) in enumerate(cacti):
            size = 0.05 + 0.035 * s
            foot, at = h + 0.05 + 0.04 * y, -0.35 + 0.36 * i + 0.2 * x
            green = canvas.lit((84, 132, 84))
            w = 0.2 * size
            decor.ellipse(at + 0.2 * size, foot, 0.55 * size, 0.1 * size, canvas.lit((176, 136, 92)))
            decor.box(at - w / 2, foot - 1.5 * size, w, 1.5 * size, green, w / 2)
            decor.box(at - 2.2 * w, foot - 1.05 * size, 2.2 * w, 0.75 * w, green, w / 3)
            decor.box(at - 2.2 * w, foot - 1.35 * size, 0.75 * w, 0.5 * size, green, w / 3)
            decor.box(at, foot - 0.8 * size, 2.0 * w, 0.75 * w, green, w / 3)
            decor.box(at + 1.4 * w, foot - 1.15 * size, 0.75 * w, 0.5 * size, green, w / 3)

    canvas.decorate(plants)


def paint_sea(canvas: Canvas, rng: np.random.Generator) -> None:
    h = canvas.horizon
    isle = np.maximum(canvas.line(rng, 6) - 0.62, 0.0) * 0.26
    canvas.ridge(h - isle + 0.006, haze(canvas, (88, 112, 118), 0.3), haze(canvas, (116, 138, 138), 0.4), 0.06, h + 0.02)
    near: Colour = {"day": (22, 96, 136), "sunset": (96, 72, 122), "night": (20, 36, 82)}[canvas.time]
    far: Colour = {"day": (110, 186, 204), "sunset": (224, 142, 124), "night": (56, 76, 128)}[canvas.time]
    top = canvas.ridge(np.full_like(canvas.x, h), far, near, 0.42)
    canvas.rgb[:, top:] *= 1 + 0.10 * (canvas.ground_field(rng, 18, 16, top) - 0.5)


def paint_snowfield(canvas: Canvas, rng: np.random.Generator) -> None:
    h = canvas.horizon
    pale = {"day": 1.0, "sunset": 0.5, "night": 0.9}[canvas.time]
    snow, blue = canvas.lit((238, 243, 250), pale), canvas.lit((196, 212, 234), pale)
    far = h - 0.02 - 0.11 * canvas.line(rng, 6)
    canvas.ridge(far, canvas.lit((208, 221, 239), pale), canvas.lit((226, 234, 244), pale), 0.15, h + 0.02)
    crest = h - 0.045 * canvas.line(rng, 8)
    firs = [(float(x), float(s)) for x, s in zip(rng.uniform(-0.5, 1.5, 26), rng.uniform(0.6, 1.4, 26), strict=True)]

    def wood(decor: Decor) -> None:
        for x, s in firs:
            foot, r = float(np.interp(x, canvas.x, crest)) + 0.012, 0.024 * s
            for level, wide in ((0.0, 1.0), (1.1, 0.78), (2.1, 0.55)):
                base, tip = foot - level * r, foot - (level + 1.9) * r
                decor.polygon([(x - wide * r, base), (x + wide * r, base), (x, tip)], canvas.lit((62, 96, 88), pale))
                cap = 0.42 * wide * r
                decor.polygon([(x - cap, tip + 0.75 * r), (x + cap * 0.5, tip + 0.65 * r), (x, tip)], snow)

    canvas.decorate(wood)
    canvas.ridge(crest, snow, blue, 0.12, h + 0.02)
    top = paint_ground(canvas, rng, (224, 233, 245), (236, 242, 250), 0.05, pale)
    drift = smoothstep(0.45, 0.75, canvas.ground_field(rng, 22, 26, top))
    canvas.blend(drift * 0.62 * np.clip((canvas.y[top:] - h) / 0.08, 0.0, 1.0), blue, top)


def _rough(canvas: Canvas, rng: np.random.Generator, cells: int) -> Array:
    """A jagged line, 0..1: straight slopes between random corners, in four octaves."""
    total = np.zeros_like(canvas.x)
    for octave in range(4):
        n = cells * 2**octave
        corners = rng.random(n + 1)
        if octave == 0:  # peaks and valleys in turn
            corners = np.where(np.arange(n + 1) % 2 == 0, 0.62 + 0.38 * corners, 0.3 * corners)
        total += 0.5**octave * np.interp(canvas.x, np.linspace(WORLD[0], WORLD[2], n + 1), corners) * (0.34 if octave else 1)
    return (total / 1.3).astype(np.float32)


def _range(canvas: Canvas, rng: np.random.Generator, cells: int, high: float, foot: float, colours: tuple[Colour, ...]) -> None:
    """A mountain range: rock, its shaded side (the sun stands to the left) and snow on the peaks."""
    rock, dark, snow = colours
    height = foot - high * _rough(canvas, rng, cells)
    top = canvas.ridge(height, rock, rock, 1.0, foot + 0.02)
    rows = canvas.y[top : canvas.row(foot + 0.02)]
    below = rows - height
    cover = np.clip(below / canvas.px + 0.5, 0.0, 1.0)
    width = max(3, round(0.03 / canvas.px))
    slope = np.convolve(np.gradient(height, canvas.px), np.ones(width) / width, mode="same")
    side = np.clip(0.5 + 0.75 * slope, 0.0, 1.0).astype(np.float32)
    down = (rows[:, 0] - foot + high) / high  # the edge between light and shade wanders on its way down
    wander = 0.10 * high * (np.sin(9.0 * down + 6.28 * rng.random()) + 0.5 * np.sin(23.0 * down + 6.28 * rng.random()))
    column = np.arange(canvas.width) + (wander / canvas.px)[:, None]
    shade = side[np.clip(column, 0, canvas.width - 1).astype(np.intp)]
    canvas.blend(cover * shade * np.clip(1.25 - below / (1.4 * high), 0.0, 1.0), dark, top)
    jag = 0.20 * canvas.line(rng, 34) + 0.12 * canvas.line(rng, 80)
    line = foot - high * (0.50 - 0.9 * (jag - 0.16))
    cap = np.clip((line - rows) / (2.0 * canvas.px + 0.006), 0.0, 1.0) * cover
    canvas.blend(cap * (1 - 0.42 * shade), snow, top)


def paint_mountains(canvas: Canvas, rng: np.random.Generator) -> None:
    h = canvas.horizon
    white: Colour = (246, 249, 254)
    _range(
        canvas,
        rng,
        10,
        0.42,
        h,
        (haze(canvas, (134, 150, 178), 0.35), haze(canvas, (104, 122, 156), 0.35), canvas.lit(white, 0.7)),
    )
    _range(canvas, rng, 14, 0.25, h + 0.02, (canvas.lit((122, 124, 136)), canvas.lit((80, 86, 104)), canvas.lit(white, 0.8)))
    canvas.ridge(h - 0.035 * canvas.line(rng, 16), canvas.lit((92, 112, 92)), canvas.lit((112, 128, 98)), 0.06, h + 0.02)
    paint_ground(canvas, rng, (136, 146, 112), (106, 112, 92), 0.34)
    stones = rng.random((26, 4))

    def rocks(decor: Decor) -> None:
        for x, y, s, tilt in stones[np.argsort(stones[:, 1])]:
            near = 0.05 + 0.95 * y
            r, at_x, at_y = (0.008 + 0.016 * s) * (0.4 + near), -0.4 + 1.8 * x, h + 0.03 + near * (1.06 - h)
            decor.ellipse(at_x + 0.3 * r, at_y + 0.02 * r, 1.3 * r, 0.4 * r, canvas.lit((78, 84, 70)))
            points = [(-1, 0), (-0.75, -0.6), (-0.1 + 0.3 * tilt, -0.95), (0.6, -0.65), (1, 0), (0.5, 0.22), (-0.5, 0.22)]
            decor.polygon([(at_x + r * u, at_y + r * v) for u, v in points], canvas.lit((128, 130, 132)))
            decor.polygon(
                [(at_x + r * u, at_y + r * v) for u, v in [points[1], points[2], (0.05, -0.35), (-0.6, -0.1), points[0]]],
                canvas.lit((164, 166, 168)),
            )

    canvas.decorate(rocks)


def paint_city(canvas: Canvas, rng: np.random.Generator) -> None:
    h = canvas.horizon
    lit_share = {"day": 0.0, "sunset": 0.35, "night": 0.5}[canvas.time]
    far = [
        (float(x), float(w), float(t))
        for x, w, t in zip(np.linspace(-0.9, 1.9, 40), rng.uniform(0.05, 0.09, 40), rng.uniform(0.08, 0.34, 40), strict=True)
    ]
    towers = [(-0.85 + 0.125 * i, rng.random(4), rng.random((14, 5))) for i in range(22)]
    walls: tuple[Colour, ...] = ((152, 158, 174), (176, 164, 156), (134, 146, 164), (186, 180, 174), (146, 134, 140))

    def skyline(decor: Decor) -> None:
        for x, w, tall in far:
            decor.box(x, h - tall, w, tall + 0.02, haze(canvas, (120, 136, 164), 0.42))
        for left, (shift, wide, tall, tint), lamps in towers:
            x, width, height = left + 0.03 * float(shift), 0.085 + 0.035 * float(wide), 0.12 + 0.30 * float(tall) ** 1.3
            wall = walls[int(tint * len(walls))]
            decor.box(x, h - height, width, height + 0.02, canvas.lit(wall))
            decor.box(
                x + 0.78 * width,
                h - height,
                0.22 * width,
                height + 0.02,
                canvas.lit((0.8 * wall[0], 0.8 * wall[1], 0.82 * wall[2])),
            )
            decor.box(
                x - 0.003, h - height - 0.007, width + 0.006, 0.009, canvas.lit((0.7 * wall[0], 0.7 * wall[1], 0.74 * wall[2]))
            )
            columns = 3 if width < 0.1 else 4
            pitch, storey = 0.94 * width / columns, 0.03
            for floor in range(int((height - 0.012) / storey)):
                for column in range(columns):
                    glow = lamps[floor % 14, column] < lit_share
                    pane: Colour = (255, 222, 128) if glow else canvas.lit((92, 116, 148))
                    decor.box(
                        x + 0.03 * width + (column + 0.22) * pitch,
                        h - height + 0.011 + floor * storey,
                        0.56 * pitch,
                        0.017,
                        pane,
                    )

    canvas.decorate(skyline)
    top = paint_ground(canvas, rng, (150, 152, 158), (112, 114, 122), 0.10)
    paving = canvas.lit((178, 176, 172))
    band = (canvas.y[top:] > h + 0.01) & (canvas.y[top:] < h + 0.05)
    canvas.blend(np.broadcast_to(band * np.float32(0.9), (band.shape[0], canvas.width)), paving, top)
    y = np.maximum(canvas.y[top:] - h, 0.01)
    joint = np.abs(((canvas.x - 0.5) / y * 0.32) % 1.0 - 0.5) * y / 0.32  # lines that meet at the horizon
    seams = np.clip(1.3 - joint / 0.004, 0.0, 1.0) * np.clip((y - 0.05) / 0.04, 0.0, 1.0)
    row = np.abs((0.16 / y) % 0.25 - 0.125) / (0.16 / y**2)
    seams = np.maximum(seams, np.clip(1.3 - row / 0.003, 0.0, 1.0) * np.clip((y - 0.07) / 0.05, 0.0, 1.0))
    canvas.blend(seams * 0.28, canvas.lit((62, 64, 72)), top)


PAINT: dict[str, Callable[[Canvas, np.random.Generator], None]] = {
    "meadow": paint_meadow,
    "desert": paint_desert,
    "sea": paint_sea,
    "snowfield": paint_snowfield,
    "mountains": paint_mountains,
    "city": paint_city,
}


def paint(canvas: Canvas, place: str, weather: str | None, rng: np.random.Generator) -> None:
    """Paint sky and land into `canvas.rgb`."""
    paint_sky(canvas, rng, weather)
    PAINT[place](canvas, rng)
    if weather:  # an overcast sky takes light and colour
        grey = canvas.rgb.mean(axis=0)
        canvas.rgb += 0.22 * (grey * 0.98 - canvas.rgb)
        canvas.rgb *= 0.93
    np.clip(canvas.rgb, 0.0, 255.0, out=canvas.rgb)
