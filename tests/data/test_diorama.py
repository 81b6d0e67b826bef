"""Diorama keeps its word: labels, held-out triples, captions, motion in seconds, hue and flow."""

from __future__ import annotations

import colorsys
import dataclasses
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from videogen.config import UserError
from videogen.data.clips import Clip, collate
from videogen.data.diorama import (
    ATTRIBUTES,
    CAMERAS,
    COLOURS,
    MOTIONS,
    PLACES,
    SHAPES,
    SPEEDS,
    TIMES,
    VOCABULARY,
    WEATHERS,
    Diorama,
    Labels,
    caption,
    is_held_out,
)
from videogen.data.prepare import preview_diorama

HUES = {"red": 0, "orange": 30, "yellow": 55, "green": 120, "blue": 220, "purple": 285}


def object_masks(source: Diorama, labels: Labels, index: int = 0) -> np.ndarray:
    """Where the object is, (F, H, W): what changes with its colour and nothing else."""
    black, white = (source.render(Labels(**{**vars(labels), "colour": colour}), index) for colour in ("black", "white"))
    return np.abs(black.frames.astype(int) - white.frames).sum(axis=-1) > 60


def centres(masks: np.ndarray) -> np.ndarray:
    """Mean (x, y) of each frame's mask, in frame widths."""
    return np.array([np.argwhere(mask).mean(axis=0)[::-1] + 0.5 for mask in masks]) / masks.shape[-1]


def warp(frame: np.ndarray, flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """frame(p + flow(p)), bilinear, and where that lies inside the frame."""
    height, width, _ = frame.shape
    y, x = np.mgrid[:height, :width] + flow[::-1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    x, y = x.clip(0, width - 1.001), y.clip(0, height - 1.001)
    x0, y0 = x.astype(int), y.astype(int)
    fx, fy = (x - x0)[..., None], (y - y0)[..., None]
    upper = frame[y0, x0] * (1 - fx) + frame[y0, x0 + 1] * fx
    lower = frame[y0 + 1, x0] * (1 - fx) + frame[y0 + 1, x0 + 1] * fx
    return upper * (1 - fy) + lower * fy, inside


def test_a_triple_is_held_out_by_the_written_rule_and_that_is_a_tenth_of_all() -> None:
    triples = list(itertools.product(COLOURS, SHAPES, MOTIONS))
    assert is_held_out("red", "ball", "moves left")
    assert not is_held_out("red", "ball", "bounces")
    assert sum(is_held_out(*triple) for triple in triples) == len(triples) // 10


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_each_split_shows_all_of_its_triples_and_none_of_the_other(split: str) -> None:
    source = Diorama(16, split=split)  # type: ignore[arg-type]
    labels = [source.labels(index) for index in range(4000)]
    shown = {(item.colour, item.shape, item.motion) for item in labels}
    due = {t for t in itertools.product(COLOURS, SHAPES, MOTIONS) if is_held_out(*t) == (split == "held_out")}
    assert shown == due
    assert {item.place for item in labels} == set(PLACES)
    assert {item.time for item in labels} == set(TIMES)
    assert {item.weather for item in labels} == {None, *WEATHERS}
    assert {item.camera for item in labels} == {None, *CAMERAS}


def test_a_clip_is_a_pure_function_of_seed_split_and_index() -> None:
    first, again = (Diorama(32, 4, seed=3).clip(11) for _ in range(2))
    assert np.array_equal(first.frames, again.frames)
    assert first.caption == again.caption
    assert first.fps == again.fps
    for other in (
        Diorama(32, 4, seed=4).clip(11),
        Diorama(32, 4, seed=3, split="held_out").clip(11),
        Diorama(32, 4, seed=3).clip(12),
    ):
        assert not np.array_equal(first.frames, other.frames)


def test_clips_make_a_batch() -> None:
    source = Diorama(16, 3, flow=True)
    batch = collate([source.clip(0), source.clip(2**31 - 1)])
    assert batch.frames.shape == (2, 3, 3, 16, 16)
    assert batch.flow is not None
    assert batch.flow.shape == (2, 3, 2, 2, 16, 16)


@pytest.mark.parametrize("index", range(12))
def test_every_size_shows_the_same_scene(index: int) -> None:
    small, large = Diorama(64, 2).clip(index), Diorama(128, 2).clip(index)
    for fine, coarse in zip(large.frames, small.frames, strict=True):
        reduced = np.asarray(Image.fromarray(fine).reduce(2), int)
        assert np.abs(reduced - coarse).mean() < 3.0
    assert small.caption == large.caption


def test_every_frame_rate_and_length_begins_with_the_same_instant() -> None:
    star = Labels("red", "star", "spins", "", "sea")
    slow, fast, picture = (Diorama(32, count, (fps,)).render(star, 5) for count, fps in ((3, 4.0), (5, 32.0), (1, 8.0)))
    assert np.array_equal(slow.frames[0], fast.frames[0])
    assert np.array_equal(slow.frames[0], picture.frames[0])
    assert not np.array_equal(slow.frames[1], fast.frames[1])


def test_a_first_frame_does_not_give_the_motion_away() -> None:
    source = Diorama(32, 1)

    def starts(motion: str, index: int) -> np.ndarray:
        return source.render(Labels("red", "ball", motion), index).frames[0]

    def shared(motions: Sequence[str]) -> float:
        return float(np.mean([all((starts(m, i) == starts(motions[0], i)).all() for m in motions) for i in range(40)]))

    on_the_ground = ("moves left", "moves right", "bounces", "grows", "shrinks", "rests")
    assert shared(on_the_ground) > 0.6  # the others: moved, or they would leave the picture
    assert shared(("spins", "circles")) == 1.0
    assert 0.2 < shared(("rises", "spins", "rests")) < 0.8


def test_a_pair_is_one_scene_with_two_motions() -> None:
    pairs = Diorama(32, 2, (4.0, 8.0, 16.0), pairs=["motion"])
    alone = Diorama(32, 2, (4.0, 8.0, 16.0))
    same = []
    for k in range(60):
        first, second = pairs.labels(2 * k), pairs.labels(2 * k + 1)
        assert first == alone.labels(2 * k)
        assert first.motion != second.motion
        assert dataclasses.replace(first, motion="spins", speed="") == dataclasses.replace(second, motion="spins", speed="")
        assert not is_held_out(second.colour, second.shape, second.motion)
        clips = pairs.clip(2 * k), pairs.clip(2 * k + 1)
        assert clips[0].fps == clips[1].fps
        same.append(np.array_equal(clips[0].frames[0], clips[1].frames[0]))
    assert 0.25 < np.mean(same) < 0.75  # where they differ: one of the two would leave the picture


def test_a_pair_is_one_scene_with_two_shapes() -> None:
    pairs, alone = Diorama(32, 1, pairs=["shape"]), Diorama(32, 1)
    for k in range(60):
        first, second = pairs.labels(2 * k), pairs.labels(2 * k + 1)
        assert first == alone.labels(2 * k)
        assert first.shape != second.shape
        assert dataclasses.replace(first, shape="ball") == dataclasses.replace(second, shape="ball")
        assert not is_held_out(second.colour, second.shape, second.motion)
    beside_a_ball = {pairs.labels(2 * k + 1).shape for k in range(400) if pairs.labels(2 * k).shape == "ball"}
    assert beside_a_ball == {*SHAPES} - {"ball"}
    with pytest.raises(UserError, match=r"pairs of clips differ in some of motion, .* weather, fps, not \['place'\]"):
        Diorama(32, pairs=["place"])  # type: ignore[arg-type]


def test_a_pair_is_one_scene_in_two_weathers() -> None:
    pairs, alone = Diorama(32, 1, pairs=["weather"]), Diorama(32, 1)
    beside_a_clear_sky = set()
    for k in range(60):
        first, second = pairs.labels(2 * k), pairs.labels(2 * k + 1)
        assert first == alone.labels(2 * k)
        assert first.weather != second.weather
        assert dataclasses.replace(first, weather=None) == dataclasses.replace(second, weather=None)
        if first.weather is None:
            beside_a_clear_sky.add(second.weather)
    assert beside_a_clear_sky == {"rain", "snow"}


def test_a_dry_clip_begins_before_anything_falls() -> None:
    options: dict[str, Any] = {"size": 64, "num_frames": 3, "only": {"weather": ("rain", "snow")}}
    for index in range(8):
        dry, wet = Diorama(**options, dry=True).clip(index), Diorama(**options).clip(index)
        assert np.array_equal(dry.frames[1:], wet.frames[1:])
        brighter = wet.frames[0].astype(int) - dry.frames[0]
        assert 0.01 < (brighter > 8).mean() < 0.5
    clear: dict[str, Any] = {**options, "only": {"weather": ("",)}}
    assert np.array_equal(Diorama(**clear, dry=True).clip(3).frames, Diorama(**clear).clip(3).frames)


def test_the_middle_of_a_clip_is_where_its_object_is() -> None:
    pairs = Diorama(64, 1, seed=5, pairs=("shape",))
    for index in range(0, 20, 2):
        first, second = pairs.clip(index), pairs.clip(index + 1)
        rows, columns = np.nonzero((first.frames[0] != second.frames[0]).any(-1))
        for x, y in (first.middle, second.middle):  # type: ignore[misc]
            assert abs(x - columns.mean()) < 4
            assert abs(y - rows.mean()) < 4


def test_a_pair_is_one_scene_at_two_speeds_or_rates() -> None:
    pairs = Diorama(32, 2, (4.0, 8.0, 8.0), pairs=["speed", "fps"])
    seen, same = set(), []
    for k in range(40):
        (first, rate), (second, other_rate) = ((pairs.labels(at), pairs.clip(at).fps) for at in (2 * k, 2 * k + 1))
        assert dataclasses.replace(first, speed="") == dataclasses.replace(second, speed="")
        assert (first.speed != second.speed) != (rate != other_rate)  # one of the two
        assert first.motion != "rests" or rate != other_rate  # what rests has no speed
        seen.add((first.speed, second.speed))
        shown = pairs.clip(2 * k), pairs.clip(2 * k + 1)
        same.append(np.array_equal(shown[0].frames[0], shown[1].frames[0]))
    assert np.mean(same) > 0.6  # where they differ: at its speed one of the two would leave the picture
    assert len(seen) == 9
    lone = Diorama(32, 2, pairs=["speed"], only={"motion": ["rests"]})
    assert lone.labels(0) == lone.labels(1)


def test_only_what_is_named_is_shown() -> None:
    ways = ("moves left", "moves right")
    source = Diorama(16, 2, pairs=["motion"], only={"motion": ways, "camera": [""], "weather": ["", "snow"]})
    shown = [source.labels(index) for index in range(60)]
    assert {labels.motion for labels in shown} == set(ways)
    assert {labels.camera for labels in shown} == {None}
    assert {labels.weather for labels in shown} == {None, "snow"}
    assert {labels.place for labels in shown} == set(PLACES)
    lone = Diorama(16, 2, pairs=["motion"], only={"motion": ["rises"]})
    assert {lone.labels(index).motion for index in range(8)} == {"rises"}
    rarest = Labels("red", "box", "rises", "slowly", "city", "night", "snow", "zooms in")
    one = Diorama(16, only={name: [getattr(rarest, name)] for name in ATTRIBUTES})
    assert {one.labels(index) for index in range(4)} == {rarest}
    with pytest.raises(UserError, match=r"only motion must be some of .*'rests', not \['flies'\]"):
        Diorama(16, only={"motion": ["flies"]})
    with pytest.raises(UserError, match=r"only some of 'motions': the attributes .* are colour, shape, motion"):
        Diorama(16, only={"motions": ["rises"]})
    with pytest.raises(UserError, match="no train clip with only"):
        Diorama(16, only={"motion": ["rests"], "speed": ["quickly"]})


def test_the_canonical_caption_is_the_designs_example_and_tells_all_labels_apart() -> None:
    example = Labels("red", "ball", "bounces", "slowly", "meadow", "sunset", "rain", "pans left")
    assert caption(example) == "a red ball bounces slowly over a meadow at sunset, in the rain, while the camera pans left"
    triples = itertools.product(COLOURS, SHAPES, MOTIONS, SPEEDS)
    things = {caption(Labels(c, s, m, v)) for c, s, m, v in triples if not (m == "rests" and v)}
    assert len(things) == len(COLOURS) * len(SHAPES) * (9 * 3 + 1)
    rest = itertools.product(PLACES, TIMES, (None, *WEATHERS), (None, *CAMERAS))
    scenes = {caption(Labels("red", "ball", "rests", "", *scene)) for scene in rest}
    assert len(scenes) == 6 * 3 * 3 * 4


def test_paraphrases_vary_and_keep_to_the_vocabulary() -> None:
    source, rng = Diorama(16), np.random.default_rng(0)
    said = {caption(source.labels(index), rng) for index in range(3000)}
    assert len(said) > 2900
    words = set(re.findall(r"[^ ,]+", " ".join(said)))
    assert words <= VOCABULARY
    assert len(VOCABULARY) < 200
    assert not any("  " in sentence or sentence.endswith((" ", ",")) for sentence in said)
    same = {caption(source.labels(0), np.random.default_rng(seed)) for seed in range(50)}
    assert len(same) > 10


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("time", TIMES)
def test_the_lit_surface_keeps_its_hue(colour: str, time: str) -> None:
    source = Diorama(64, 1)
    labels = Labels(colour, "ball", "rests", "", "desert", time)
    mask = object_masks(source, labels)[0]
    inner = mask & np.roll(mask, 3, 0) & np.roll(mask, -3, 0) & np.roll(mask, 3, 1) & np.roll(mask, -3, 1)
    pixels = source.render(labels).frames[0][inner] / 255
    hsv = np.array([colorsys.rgb_to_hsv(*pixel) for pixel in pixels])
    if colour in HUES:
        vivid = hsv[hsv[:, 1] > 0.25]
        away = (vivid[:, 0] * 360 - HUES[colour] + 180) % 360 - 180
        assert len(vivid) > 0.6 * len(hsv)
        assert np.abs(away).max() < 8
    else:
        assert hsv[:, 1].max() < 0.05
        assert (np.median(hsv[:, 2]) > 0.5) == (colour == "white")


@pytest.mark.parametrize(
    ("motion", "axis", "sign"), [("moves left", 0, -1), ("moves right", 0, 1), ("rises", 1, -1), ("falls", 1, 1)]
)
def test_straight_motions_go_their_way_at_their_speed(motion: str, axis: int, sign: int) -> None:
    rates = []
    for speed in SPEEDS:
        path = centres(object_masks(Diorama(64, 3, (4.0,)), Labels("red", "ball", motion, speed)))
        rates.append((path[2] - path[0])[axis] * sign / 0.5)
        assert abs((path[2] - path[0])[1 - axis]) < 0.01
    assert rates[1] > 0.05
    assert rates[0] == pytest.approx(rates[1] / 2, rel=0.15)
    assert rates[2] == pytest.approx(rates[1] * 2, rel=0.15)


def test_other_motions_do_what_they_say() -> None:
    source = Diorama(64, 9, (6.0,))
    masks = {motion: object_masks(source, Labels("red", "star", motion)) for motion in MOTIONS[4:]}
    areas = {motion: mask.sum(axis=(1, 2)) for motion, mask in masks.items()}
    paths = {motion: centres(mask) for motion, mask in masks.items()}
    assert np.ptp(paths["bounces"][:, 1]) > 0.15
    assert np.ptp(paths["bounces"][:, 0]) < 0.02
    assert np.ptp(paths["circles"][:, 0]) > 0.1
    assert np.ptp(paths["circles"][:, 1]) > 0.1
    assert (np.diff(areas["grows"]) > 0).all()
    assert (np.diff(areas["shrinks"]) < 0).all()
    assert np.ptp(paths["spins"], axis=0).max() < 0.03
    assert (masks["spins"][0] ^ masks["spins"][2]).sum() > 100
    assert (masks["rests"] == masks["rests"][0]).all()


@pytest.mark.parametrize("motion", ["moves left", "moves right"])
@pytest.mark.parametrize("camera", [None, *CAMERAS])
def test_the_object_is_in_view_from_the_first_frame_to_the_last(motion: str, camera: str | None) -> None:
    source = Diorama(32, 16, (4.0,))
    for index in range(3):
        masks = object_masks(source, Labels("red", "ball", motion, "quickly", "city", "day", None, camera), index)
        assert masks.sum(axis=(1, 2)).min() > 20


def test_only_weather_and_water_move_by_themselves() -> None:
    source = Diorama(32, 3)

    def moves(place: str, weather: str | None) -> bool:
        frames = source.render(Labels("red", "ball", "rests", "", place, "day", weather)).frames
        return not np.array_equal(frames[0], frames[1])

    assert [place for place in PLACES if moves(place, None)] == ["sea"]
    assert all(moves("desert", weather) for weather in WEATHERS)


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("camera", [None, *CAMERAS])
def test_flow_leads_to_the_same_surface_in_the_next_and_the_previous_frame(motion: str, camera: str | None) -> None:
    source = Diorama(96, 3, (6.0,), flow=True)
    labels = Labels("red", "heart", motion, "", "mountains", "day", None, camera)
    clip, masks = source.render(labels, 2), object_masks(source, labels, 2)
    assert clip.flow is not None
    core = masks[1].copy()
    for axis, step in itertools.product((0, 1), (-2, 2)):
        core &= np.roll(masks[1], step, axis)
    for other, side in ((2, 1), (0, 0)):
        warped, inside = warp(clip.frames[other].astype(float), clip.flow[1, side])
        error = np.abs(warped - clip.frames[1]).mean(axis=-1)
        still = np.abs(clip.frames[other].astype(float) - clip.frames[1]).mean(axis=-1)
        if motion == "spins":  # the marks turn, the light does not
            assert error[core & inside].mean() < 0.6 * still[core & inside].mean()
        else:
            assert error[core & inside].mean() < 2.5  # of 255: resampling
        assert np.quantile(error[inside], 0.9) < 5.0  # the rest: what the object or its shadow covers and bares


def test_flow_of_a_pan_is_the_cameras_speed() -> None:
    clip = Diorama(64, 4, (8.0,), flow=True).render(Labels("red", "ball", "rests", camera="pans left"))
    assert clip.flow is not None
    assert np.allclose(clip.flow[:, 1, 0], 0.07 * 64 / 8, atol=1e-4)
    assert np.allclose(clip.flow[:, 1, 1], 0, atol=1e-4)
    assert np.allclose(clip.flow[:, 0], -clip.flow[:, 1], atol=1e-4)


def test_flow_of_the_object_is_its_own_motion() -> None:
    source = Diorama(64, 3, (8.0,), flow=True)
    labels = Labels("red", "box", "moves right", "quickly")
    clip, masks = source.render(labels), object_masks(source, labels)
    assert clip.flow is not None
    inside = clip.flow[1, 1, 0] > 0.1
    assert np.allclose(clip.flow[1, 1, 0][inside], 0.16 * 64 / 8, atol=1e-4)
    assert (inside ^ masks[1]).sum() < 0.15 * masks[1].sum()
    assert np.abs(clip.flow[1, :, :, ~masks[1] & ~inside]).max() == 0


def test_impossible_wishes_are_told_in_one_line() -> None:
    for wish in (
        lambda: Labels("pink", "ball", "rests"),
        lambda: Labels("red", "ball", "rests", "quickly"),
        lambda: Diorama(4),
        lambda: Diorama(32, 0),
        lambda: Diorama(32, fps=(float("nan"),)),
        lambda: Diorama(32, fps=()),
        lambda: Diorama(32, 1000, (4.0,)),
        lambda: Diorama(32, seed=-1),
        lambda: Diorama(32, split="test"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UserError) as caught:
            wish()
        assert "\n" not in str(caught.value)
    with pytest.raises(IndexError):
        Diorama(32).clip(-1)


def test_the_preview_is_a_picture_and_an_unwritable_one_is_told(tmp_path: Path) -> None:
    preview_diorama(tmp_path / "sheet.png", count=2, size=32)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 2 * 4 * 32
    with pytest.raises(UserError):
        preview_diorama(tmp_path / "missing" / "sheet.png", count=1, size=32)


def test_a_clip_has_the_promised_shape() -> None:
    clip = Diorama(32, 5).clip(1)
    assert isinstance(clip, Clip)
    assert clip.frames.shape == (5, 32, 32, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.fps in (4.0, 8.0, 16.0)
    assert clip.flow is None
