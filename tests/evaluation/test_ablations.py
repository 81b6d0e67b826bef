"""Statements about the paper's ablations on a tiny untrained pipeline: what is compared with what, and what is written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("cv2")

from PIL import Image  # noqa: E402

from videogen.config import MAX_STEPS, UserError  # noqa: E402
from videogen.data.clips import Clip  # noqa: E402
from videogen.data.diorama import Diorama  # noqa: E402
from videogen.evaluation.ablations import (  # noqa: E402
    ClipChoice,
    Distances,
    decode_both_ways,
    decoder,
    interpolate,
    interpolation,
    reference,
)
from videogen.evaluation.benchmarks import Prompts  # noqa: E402
from videogen.evaluation.evaluate import Request  # noqa: E402
from videogen.evaluation.pictures import side_by_side, spread, table  # noqa: E402
from videogen.evaluation.production import Production, Team  # noqa: E402
from videogen.evaluation.result import compare, read_result  # noqa: E402
from videogen.evaluation.videos import Sampling  # noqa: E402
from videogen.generation import GenerationOptions  # noqa: E402
from videogen.models.lpips import LPIPS  # noqa: E402
from videogen.pipeline import VideoGenPipeline, to_uint8  # noqa: E402
from videogen.training.distributed import Ranks  # noqa: E402
from videogen.video import Video, write_video  # noqa: E402

ALONE = Team(Ranks(0, 1, torch.device("cpu")))
CHOICE = ClipChoice("diorama", 5, 32, count=2)


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def clip() -> Clip:
    return Diorama(32, 5, (8.0,), split="held_out").clip(0)


def test_every_way_makes_the_same_middle_frames(tiny_pipe: VideoGenPipeline, clip: Clip) -> None:
    made = interpolate(tiny_pipe, clip, 0, seed=0)
    ways = ["flow", "slerp", "blend", "flow + refiner", "slerp + refiner", "blend + refiner"]
    assert list(made) == ["truth", "true latents", *ways]
    assert {frames.shape for frames in made.values()} == {(2, 3, 32, 32)}
    assert np.array_equal(to_uint8(made["truth"]), clip.frames[1::2])
    assert len({tuple(frames.flatten().tolist()) for frames in made.values()}) == len(made)
    again = interpolate(tiny_pipe, clip, 0, seed=0)
    assert all(torch.equal(made[name], again[name]) for name in made)
    other = interpolate(tiny_pipe, clip, 0, seed=1)
    assert torch.equal(made["flow"], other["flow"])  # only the refiner draws noise
    assert not torch.equal(made["flow + refiner"], other["flow + refiner"])


def test_blending_a_still_clip_is_exact_as_far_as_the_latents(tiny_pipe: VideoGenPipeline, clip: Clip) -> None:
    still = dataclasses.replace(clip, frames=clip.frames[:1].repeat(5, 0))
    made = interpolate(tiny_pipe, still, 0, seed=0)
    for way in ("blend", "slerp"):
        torch.testing.assert_close(made[way], made["true latents"], atol=1e-4, rtol=0)


def test_an_undegraded_clip_is_decoded_as_a_clean_one(tiny_pipe: VideoGenPipeline, clip: Clip) -> None:
    made = decode_both_ways(tiny_pipe, clip, 0, seed=0, strength=0.0)
    assert torch.equal(made["truth"], made["degraded input"])
    for way in ("image decoder", "video decoder"):
        assert torch.equal(made[f"{way}, clean"], made[f"{way}, degraded"])
    worse = decode_both_ways(tiny_pipe, clip, 0, seed=0, strength=1.0)
    assert not torch.equal(worse["degraded input"], made["truth"])
    assert torch.equal(worse["image decoder, clean"], made["image decoder, clean"])


def test_interpolation_writes_a_table_a_picture_and_results(tiny_pipe: VideoGenPipeline, tmp_path: Path) -> None:
    results = interpolation(tiny_pipe, CHOICE, tmp_path, Distances(LPIPS().eval(), "0"), silent)
    found = {(result.details["method"], result.metric): result for result in results}
    assert {metric for _, metric in found} == {"psnr", "ssim", "lpips"}
    assert all((result.samples, result.skipped) == (2, 0) for result in results)
    for metric in ("psnr", "ssim", "lpips"):
        apart = found["flow", metric].value - found["slerp", metric].value
        assert found["flow minus slerp", metric].value == pytest.approx(apart)
    assert found["flow", "psnr"].fingerprint["protocol"]["clips"]["num_frames"] == 5
    with Image.open(tmp_path / "frames.png") as picture:
        assert picture.width > 2 * 128
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert len(lines) == 2 + len({method for method, _ in found})
    assert "lpips" in lines[0]
    saved = [read_result(tmp_path / "results" / f"{way}.psnr.json") for way in ("flow", "slerp")]
    assert "psnr" in compare(*saved)


def test_the_decoders_are_measured_with_flicker(tiny_pipe: VideoGenPipeline, tmp_path: Path) -> None:
    results = decoder(tiny_pipe, dataclasses.replace(CHOICE, num_frames=4), tmp_path, Distances(), silent)
    found = {(result.details["method"], result.metric): result.value for result in results}
    for given in ("clean", "degraded"):
        for metric in ("psnr", "ssim", "warping_error"):
            apart = found[f"video decoder, {given}", metric] - found[f"image decoder, {given}", metric]
            assert found[f"video decoder, {given} minus image decoder, {given}", metric] == pytest.approx(apart)
    assert found["truth", "warping_error"] < found["image decoder, clean", "warping_error"]
    assert ("truth", "psnr") not in found
    assert (tmp_path / "results" / "video-decoder-degraded.warping_error.json").is_file()


def test_real_videos_may_take_dioramas_place(tiny_pipe: VideoGenPipeline, tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (6, 32, 48, 3), np.uint8)
    folder = tmp_path / "videos"
    folder.mkdir()
    write_video(Video(frames, 12.0), folder / "b.mp4")
    write_video(Video(frames[:2], 12.0), folder / "a.mp4")
    choice = ClipChoice(str(folder), 3, 32, stride=2)
    with pytest.raises(UserError, match=r"a\.mp4 has too few frames: 1 of 3, 2 apart; --skip-bad"):
        decoder(tiny_pipe, choice, tmp_path / "out", Distances(), silent)
    told: list[str] = []
    results = decoder(
        tiny_pipe, dataclasses.replace(choice, skip_bad=True), tmp_path / "out", Distances(), told.append, strength=0.5
    )
    assert {(result.samples, result.skipped, result.interval) for result in results} == {(1, 1, None)}
    assert any("a.mp4 was left out" in line for line in told)
    (folder / "b.mp4").unlink()
    with pytest.raises(UserError, match="no clip of"):
        decoder(tiny_pipe, dataclasses.replace(choice, skip_bad=True), tmp_path / "out", Distances(), silent)


def test_clips_without_middle_frames_are_refused(tiny_pipe: VideoGenPipeline, tmp_path: Path) -> None:
    for num_frames in (1, 4):
        with pytest.raises(UserError, match="middle frames are known in clips of"):
            interpolation(tiny_pipe, dataclasses.replace(CHOICE, num_frames=num_frames), tmp_path, Distances(), silent)


def test_with_and_without_reference(tiny_folder: Path, tmp_path: Path) -> None:
    options = GenerationOptions(num_frames=3, temporal_factor=1, num_inference_steps=dict.fromkeys(MAX_STEPS, 1))
    request = Request(
        tmp_path, Production(str(tiny_folder), options=options), Prompts.of(["a red ball rises"], "ours"),
        sampling=Sampling(3, 1, 32), protocol={"benchmark": "reference"},
    )  # fmt: skip
    results = reference(request, ALONE, silent)
    found: dict[str, dict[str, Any]] = {}
    for result in results:
        found.setdefault(str(result.details["method"]), {})[result.metric] = result
    assert found.keys() == {"with reference", "without reference"}
    assert "reference_psnr" in found["with reference"]
    assert "reference_psnr" not in found["without reference"]
    both = [tmp_path / "results" / f"{way}-reference.motion_flow.json" for way in ("with", "without")]
    assert "motion_flow" in compare(*map(read_result, both))
    assert (tmp_path / "frames.png").is_file()
    assert (tmp_path / "table.md").read_text().count("\n") == 4
    assert (tmp_path / "without-reference" / "videos" / "000000.mp4").is_file()


def test_pictures_and_tables() -> None:
    frames = np.zeros((5, 16, 32, 3), np.uint8)
    assert len(spread(frames, 3)) == 3
    assert len(spread(frames, 8)) == 5
    picture = side_by_side([("a clip 🎈", {"one": spread(frames, 3), "two": spread(frames, 2)})], width=64)
    assert picture.height > 2 * 32
    assert picture.width > 3 * 64
    assert table(["a", "b"], [["long", "1"]]) == "| a    | b |\n| ---- | - |\n| long | 1 |"
