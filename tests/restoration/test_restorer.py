"""Statements about temporal super-resolution and the video decoder on streams of real frames (3.3, 3.4), with tiny networks."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from video_files import pictures, sound_of, write
from videogen import cli
from videogen.config import UserError
from videogen.restoration.restorer import Output, Restorer
from videogen.restoration.run import interpolate_video
from videogen.restoration.source import Frame, open_source
from videogen.stages.decoding import decode_video


@pytest.fixture(scope="module")
def restorer(tiny_folder: Path) -> Restorer:
    return Restorer.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def mini() -> Restorer:
    """Trained networks, where a statement is about how much they see of each other's surroundings."""
    return Restorer.from_pretrained("mini")


def frames(pixels: np.ndarray, step: int = 2, begin: int = 0) -> list[Frame]:
    return [Frame(picture, begin + index, (begin + index) * step, step) for index, picture in enumerate(pixels)]


def interpolate(restorer: Restorer, given: list[Frame], factor: int = 2, max_gap: int = 100) -> list[Output]:
    return list(restorer.interpolate(given, factor, fps=8, max_gap=max_gap))


def pixels_of(found: list[Output]) -> np.ndarray:
    return np.stack([frame.pixels for frame in found]).astype(int)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_given_frames_stay_bit_for_bit_with_new_ones_evenly_between(restorer: Restorer, factor: int) -> None:
    given = [Frame(picture, index, pts, 0) for index, (picture, pts) in enumerate(zip(pictures(3), (5, 8, 14), strict=True))]
    given = [dataclasses.replace(frame, duration=span) for frame, span in zip(given, (3, 6, 4), strict=True)]
    found = interpolate(restorer, given, factor)
    assert len(found) == 3 * factor
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(found[::factor], given, strict=True))
    assert [frame.pts for frame in found] == [
        factor * frame.pts + index * frame.duration for frame in given for index in range(factor)
    ]
    assert all(np.array_equal(frame.pixels, given[-1].pixels) for frame in found[-factor:])  # nothing follows: held
    assert not np.array_equal(found[factor // 2].pixels, given[0].pixels)


def test_nothing_crosses_a_cut(restorer: Restorer) -> None:
    first, other, third = (pictures(4, seed=seed) for seed in (0, 1, 2))
    one, two = (interpolate(restorer, frames(np.concatenate([first, end]))) for end in (other, third))
    assert np.array_equal(pixels_of(one[:8]), pixels_of(two[:8]))
    assert np.array_equal(one[7].pixels, first[3])


def test_nothing_is_put_into_a_long_pause(restorer: Restorer) -> None:
    given = [*frames(pictures(6))[:3], *[dataclasses.replace(each, pts=each.pts + 50) for each in frames(pictures(6))[3:]]]
    given[2] = dataclasses.replace(given[2], duration=52)
    found = interpolate(restorer, given, max_gap=10)
    assert np.array_equal(found[5].pixels, given[2].pixels)
    assert not np.array_equal(interpolate(restorer, given, max_gap=100)[5].pixels, given[2].pixels)


def test_blocks_hardly_show(mini: Restorer, restorer: Restorer) -> None:
    """Blocks of 5 frames instead of one: temporal layers see other frames; no pixel moves by more than a level or two."""
    given = frames(pictures(12, 32, 32))
    whole, parts = (interpolate(dataclasses.replace(mini, window=window), given) for window in (16, 5))
    assert np.abs(pixels_of(parts) - pixels_of(whole)).max() <= 2
    assert [frame.pts for frame in parts] == [frame.pts for frame in whole]
    one, again = (pixels_of(interpolate(restorer, given[:4])) for _ in range(2))
    assert np.array_equal(one, again)


def test_frames_are_taken_as_they_are_needed(restorer: Restorer) -> None:
    taken: list[int] = []

    def stream() -> Iterator[Frame]:
        for frame in frames(pictures(40)):
            taken.append(frame.index)
            yield frame

    found = restorer.interpolate(stream(), 2, fps=8, max_gap=100)
    next(found)
    assert len(taken) <= restorer.window + 4
    assert sum(1 for _ in found) == 79


def test_noise_follows_the_seed_and_the_place_in_the_video(restorer: Restorer) -> None:
    given = frames(pictures(4))
    one, other = (pixels_of(interpolate(dataclasses.replace(restorer, seed=seed), given)) for seed in (1, 2))
    assert not np.array_equal(one, other)
    later = interpolate(dataclasses.replace(restorer, seed=1), frames(pictures(4), begin=7))
    assert not np.array_equal(one, pixels_of(later))


def test_enhance_gives_each_frame_once_at_its_time(restorer: Restorer) -> None:
    given = frames(pictures(7, 25, 31))
    found = list(restorer.enhance(given))
    assert [(each.pts, each.duration, each.pixels.shape) for each in found] == [
        (f.pts, f.duration, f.pixels.shape) for f in given
    ]


def test_a_still_video_stays_still(mini: Restorer) -> None:
    """New frames between equal ones; what the refiner adds to them is its own affair."""
    still = frames(np.repeat(pictures(1, 48, 64), 4, axis=0))
    found = interpolate(dataclasses.replace(mini, refiner=None), still)
    changes = np.abs(pixels_of(found).astype(int) - still[0].pixels)
    assert changes.mean() < 0.5  # of 255 levels
    assert changes.max() <= 4


@torch.no_grad()
def test_tiles_of_space_are_within_a_level_of_the_whole_and_those_that_fit_are_the_whole(mini: Restorer) -> None:
    """What differs is a tile's own border, and the statistics of its norms, which tiles share."""
    latents = mini._encode(pictures(1, 192, 256)[0])[None, None]  # 48x64 of them
    whole = decode_video(mini.video_decoder, latents, tile=None)
    assert torch.equal(decode_video(mini.video_decoder, latents, tile=64), whole)
    for tile in (32, 48):
        assert (decode_video(mini.video_decoder, latents, tile=tile) - whole).abs().max() * 127.5 < 1
    layers = [layer for layer in mini.video_decoder.modules() if isinstance(layer, torch.nn.GroupNorm)]
    assert all("forward" not in vars(layer) for layer in layers)  # the networks are as they were


def test_a_file_through_the_command_line(tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.mp4", np.concatenate([pictures(4, 26, 34), pictures(3, 26, 34, seed=1)]), sound="aac")
    assert (
        cli.main(["interpolate", str(path), "-o", str(tmp_path / "b.mkv"), "--factor", "4", "--model", str(tiny_folder)]) == 0
    )
    assert cli.main(["enhance", str(path), "-o", str(tmp_path / "c.mov"), "--model", str(tiny_folder), "--tile", "64"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'b.mkv'}\n{tmp_path / 'c.mov'}\n"
    assert sound_of(tmp_path / "b.mkv") == sound_of(tmp_path / "c.mov") == sound_of(path)
    for name, count in (("b.mkv", 28), ("c.mov", 7)):
        with open_source(tmp_path / name) as source:
            assert (source.width, source.height, source.rate) == (34, 26, Fraction(25 * count, 7))
            assert sum(isinstance(item, Frame) for item in source.read()) == count
    assert sorted(os.listdir(tmp_path)) == ["a.mp4", "b.mkv", "c.mov"]


def test_an_interruption_leaves_nothing(tmp_path: Path, restorer: Restorer) -> None:
    path = write(tmp_path / "a.mp4", pictures(6))

    def interrupt(done: int, total: int | None) -> None:
        assert total == 6
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interpolate_video(path, tmp_path / "b.mp4", restorer, 2, tell=interrupt)
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_a_single_frame_has_nothing_between(tmp_path: Path, restorer: Restorer) -> None:
    path = write(tmp_path / "a.mp4", pictures(1))
    with pytest.raises(UserError, match="has a single frame"):
        interpolate_video(path, tmp_path / "b.mp4", restorer, 2)
    assert os.listdir(tmp_path) == ["a.mp4"]
    with pytest.raises(UserError, match="2, 4 or 8"):
        interpolate_video(path, tmp_path / "b.mp4", restorer, 16)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["missing.mp4", "-o", "b.mp4"], "cannot read missing.mp4"),
        (["a.mp4", "-o", "b.avi"], "unknown ending '.avi'; use .mp4, .mov, .mkv, .webm"),
        (["a.mp4", "-o", "a.mp4"], "a.mp4 exists"),
        (["a.mp4", "-o", "no/b.mp4"], "there is no folder"),
        (["a.mp4", "-o", "b.mp4", "--tile", "8"], "--tile: must be"),
        (["a.mp4", "-o", "b.mp4", "--model", "no/such/model"], "neither a folder nor a hub id"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write(tmp_path / "a.mp4", pictures(2))
    for command in ("interpolate", "enhance"):
        assert cli.main([command, *arguments]) == 2
        said = capsys.readouterr().err
        assert complaint in said
        assert said.count("\n") == 1
    assert os.listdir(tmp_path) == ["a.mp4"]
