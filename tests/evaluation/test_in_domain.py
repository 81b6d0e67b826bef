"""Statements about IS, FVD and CLIPSIM on Diorama: what is measured, against which clips, and that nobody can confuse them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("cv2")

import tiny  # noqa: E402
from videogen.cli import main  # noqa: E402
from videogen.config import UserError  # noqa: E402
from videogen.data.diorama import Diorama, caption, is_held_out  # noqa: E402
from videogen.evaluation.features import video_features  # noqa: E402
from videogen.evaluation.in_domain import TrueClips, load_judges  # noqa: E402
from videogen.evaluation.inception_score import softmax  # noqa: E402
from videogen.evaluation.result import compare, read_result  # noqa: E402
from videogen.evaluation.videos import Sampling  # noqa: E402
from videogen.stages.conditions import resize_frames  # noqa: E402
from videogen.video import Video, write_video  # noqa: E402

CPU = torch.device("cpu")
COUNT = 24
METRICS = ("in_domain_inception_score", "in_domain_frechet_video_distance", "in_domain_clip_similarity")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("in_domain") / "runs"
    tiny.write_runs(place)
    return place


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Diorama's own clips of 4 frames, as somebody's videos with their prompts."""
    place = tmp_path_factory.mktemp("videos")
    world = Diorama(32, 4, (4.0,), split="held_out")
    for index in range(COUNT):
        clip = world.clip(index)
        write_video(Video(clip.frames, clip.fps, {"prompt": clip.caption}), place / f"{index:02d}.mp4")
    return place


def command(folder: Path, runs: Path, output: Path, *more: str) -> list[str]:
    common = ["--num-frames", "4", "--size", "32", "--quiet", "-o", str(output)]
    return ["evaluate", "videos", str(folder), "--in-domain", str(runs), *common, *more]


@pytest.fixture(scope="module")
def measured(folder: Path, runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("measured")
    assert main(command(folder, runs, output)) == 0
    return output


def test_each_number_says_that_it_is_in_domain(measured: Path) -> None:
    for metric in METRICS:
        result = read_result(measured / f"{metric}.json")
        assert (result.in_domain, result.samples) == (True, COUNT)
        assert result.fingerprint["features"]["in_domain"] is True
    motion = read_result(measured / "motion_flow.json")
    assert not motion.in_domain  # needs no network


def test_the_distance_is_to_twice_as_many_true_clips_with_the_floor_beside_it(measured: Path) -> None:
    fvd = read_result(measured / "in_domain_frechet_video_distance.json")
    assert fvd.details["real_videos"] == 2 * COUNT
    assert fvd.details["noise_floor_of_real"] > 0
    assert fvd.details["rank_deficient"] is False
    assert fvd.fingerprint["protocol"]["real"]["videos"] == str(2 * COUNT)
    # The videos are true clips too: the distance is that of noise.
    assert fvd.value < 3 * fvd.details["noise_floor_of_real"]


def test_the_table_shows_the_floor(folder: Path, runs: Path, measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (measured / "real.safetensors").stat().st_mtime_ns
    first = read_result(measured / f"{METRICS[1]}.json")
    assert main(command(folder, runs, measured)) == 0
    printed = capsys.readouterr().out
    assert "its floor, real to real" in printed
    assert f"2 x {COUNT}" in printed
    assert all(metric in printed for metric in METRICS)
    assert (measured / "real.safetensors").stat().st_mtime_ns == before  # true clips are drawn once
    assert read_result(measured / f"{METRICS[1]}.json") == first


def test_nothing_sets_an_in_domain_number_beside_another(measured: Path) -> None:
    ours = read_result(measured / f"{METRICS[1]}.json")
    papers = dataclasses.replace(ours, metric="frechet_video_distance", in_domain=False)
    assert "In-domain" in compare(ours, ours)
    for allow in ((), ("metric", "in_domain", "features")):
        with pytest.raises(UserError, match="in_domain: true and false"):
            compare(ours, papers, allow=allow)


def test_the_real_side_may_be_an_earlier_runs(folder: Path, runs: Path, measured: Path, tmp_path: Path) -> None:
    assert main(command(folder, runs, tmp_path, "--real", str(measured / "real.safetensors"))) == 0
    assert not (tmp_path / "real.safetensors").exists()
    assert read_result(tmp_path / f"{METRICS[1]}.json") == read_result(measured / f"{METRICS[1]}.json")


def test_true_clips_of_another_rate_are_another_set() -> None:
    clips = [TrueClips(Sampling(4, 1, 32), fps, 1) for fps in (4.0, 8.0)]
    (slow,), (fast,) = (list(each.samples()) for each in clips)
    assert (slow.fps, fast.fps) == (4.0, 8.0)
    assert clips[0].names != clips[1].names  # and so the fingerprint's digest of them


def test_true_clips_are_held_out_and_shared_by_ranks() -> None:
    clips = TrueClips(Sampling(4, 1, 32), 4.0, 7)
    whole = list(clips.samples())
    shared = sorted((each for rank in range(3) for each in clips.samples(rank, 3)), key=lambda each: each.index)
    assert [each.name for each in shared] == clips.names
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(whole, shared, strict=True))
    said = [clips.world.labels(index) for index in range(50)]
    assert all(is_held_out(each.colour, each.shape, each.motion) for each in said)
    prompts = [Diorama(split="held_out").labels(index) for index in range(50)]
    assert said != prompts


def test_classes_are_colours_times_shapes(runs: Path) -> None:
    judges = load_judges(runs, CPU)
    clip = Diorama(32, 4, (4.0,)).clip(0).frames
    joint = softmax(video_features(judges.classes, [clip])).reshape(8, 6)
    assert joint.sum() == pytest.approx(1)
    features = torch.from_numpy(video_features(judges.features, [clip])).float()
    scores = judges.features.network.classify(features)
    np.testing.assert_allclose(joint.sum(1), scores["colour"].softmax(1)[0].numpy(), rtol=1e-4)
    np.testing.assert_allclose(joint.sum(0), scores["shape"].softmax(1)[0].numpy(), rtol=1e-4)
    assert judges.features.dimensions == tiny.CLASSIFIER["features"]


def test_the_picture_of_clip_is_four_frames_spread_over_the_video(runs: Path) -> None:
    judges = load_judges(runs, CPU)
    frames = np.random.default_rng(0).integers(0, 255, (9, 32, 32, 3), np.uint8)
    found = judges.clip.images(frames)
    assert np.array_equal(found, judges.clip.images(frames[[0, 2, 4, 6]]))
    others = frames.copy()
    others[[1, 3, 5, 7, 8]] = 0
    assert np.array_equal(found, judges.clip.images(others))
    pixels = resize_frames(torch.from_numpy(frames[[0, 2, 4, 6]]).permute(0, 3, 1, 2) / 127.5 - 1, (16, 16))
    picture = torch.cat([torch.cat([*pixels[:2]], dim=2), torch.cat([*pixels[2:]], dim=2)], dim=1)[None]
    with torch.no_grad():
        expected = judges.clip.model.get_image_features(pixel_values=picture)
    expected = expected if isinstance(expected, torch.Tensor) else expected.pooler_output
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-6)


def test_table_3_in_domain_draws_the_true_clips_once(tiny_folder: Path, runs: Path, tmp_path: Path) -> None:
    command = [
        "evaluate", "reference", "--model", str(tiny_folder), "--in-domain", str(runs), "--count", "4", "--num-frames", "4",
        "--size", "32", "--steps", "1", "--quiet", "-o", str(tmp_path),
    ]  # fmt: skip
    assert main(command) == 0
    found = [read_result(tmp_path / "results" / f"{way}-reference.{METRICS[0]}.json") for way in ("with", "without")]
    assert METRICS[0] in compare(*found)
    assert [(tmp_path / f"{way}-reference" / "real.safetensors").exists() for way in ("with", "without")] == [True, False]
    prompt = json.loads((tmp_path / "with-reference" / "videos" / "000000.json").read_text())["prompt"]
    assert prompt == caption(Diorama(split="held_out").labels(0))


def fails(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(command) == 2
    return capsys.readouterr().err


def test_bad_input_is_one_line(folder: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    said = fails(command(folder, tmp_path, output), capsys)
    assert "has no video_classifier/network: videogen train mini/video_classifier" in said
    assert "takes the place of" in fails(command(folder, runs, output, "--clip", "x"), capsys)
    assert "exactly 4 frames, not 3" in fails([*command(folder, runs, output), "--num-frames", "3"], capsys)
    assert "unrecognized" in fails(["evaluate", "msrvtt", "-o", "x", "--model", "mini", "--in-domain", str(runs)], capsys)
