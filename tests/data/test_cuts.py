"""Statements about scene cuts, on made and on real video."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from video_files import pictures
from videogen.data.cuts import find_cuts

CLIPS = Path(__file__).parents[3] / "shared" / "data" / "clips"


def test_cuts_are_where_shots_change() -> None:
    shots = [pictures(count, 54, 96, seed) for count, seed in ((5, 0), (6, 1), (7, 2))]
    assert find_cuts(np.concatenate(shots)) == [5, 11]


def test_a_still_and_a_fade_have_none() -> None:
    still = np.repeat(pictures(1), 6, axis=0)
    fade = np.stack([still[0] * (1 - t / 25) for t in range(26)]).astype(np.uint8)
    assert find_cuts(still) == find_cuts(fade) == []


def test_fast_motion_is_no_cut() -> None:
    wide = np.random.default_rng(0).integers(0, 256, (9, 60, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    pan = np.stack([wide[:, 20 * t : 20 * t + 128] for t in range(16)])
    assert find_cuts(pan) == []


@pytest.mark.parametrize(("name", "cuts"), [("nasa", [202]), ("bikes", [30, 76, 137, 187, 242]), ("car_detection", [])])
def test_cuts_of_real_clips(name: str, cuts: list[int]) -> None:
    path = CLIPS / f"{name}.mp4"
    if not path.is_file():
        pytest.skip("the shared clips are not here")
    with av.open(str(path)) as container:
        found = [frame.reformat(96, 54, "rgb24", interpolation="AREA").to_ndarray() for frame in container.decode(video=0)]
    assert find_cuts(found) == cuts
