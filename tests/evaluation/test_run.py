"""Statements about generating what is missing, measuring in any number of processes, and what is wrong with videos."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("cv2")

from PIL import Image  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import tiny  # noqa: E402
from videogen.config import MAX_STEPS, UserError  # noqa: E402
from videogen.evaluation.benchmarks import Prompts  # noqa: E402
from videogen.evaluation.evaluate import Networks, Request, evaluate  # noqa: E402
from videogen.evaluation.features import FeatureSource, load_clip  # noqa: E402
from videogen.evaluation.measures import (  # noqa: E402
    ClipSimilarity,
    Frechet,
    Inception,
    RealVideos,
    ReferenceFidelity,
    Steadiness,
)
from videogen.evaluation.production import Production, Team, generate_missing  # noqa: E402
from videogen.evaluation.result import read_result  # noqa: E402
from videogen.evaluation.run import RealSet, conclude, measure, real_videos  # noqa: E402
from videogen.evaluation.statistics import GroupedMoments  # noqa: E402
from videogen.evaluation.videos import Sampling, VideoFolderSamples  # noqa: E402
from videogen.generation import GenerationOptions, generate  # noqa: E402
from videogen.models.pretrained import load_tokenizer  # noqa: E402
from videogen.pipeline import VideoGenPipeline  # noqa: E402
from videogen.training.distributed import Ranks  # noqa: E402
from videogen.video import Video, read_video, write_video  # noqa: E402

SOURCE = FeatureSource("small", "nowhere", "0" * 64, False)
ALONE = Team(Ranks(0, 1, torch.device("cpu")))
OPTIONS = GenerationOptions(num_frames=3, temporal_factor=1, num_inference_steps=dict.fromkeys(MAX_STEPS, 1))
PROMPTS = ["a red ball rises", "a blue box falls", "a red ball rises"]


class Network(nn.Module):
    """A small real network with the interface of I3D and C3D."""

    dimensions, resize = 5, "every 8th pixel"

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3 * 4 * 4 * 4, self.dimensions)

    def prepare(self, frames: Tensor) -> Tensor:
        return frames[:4, ::8, ::8].permute(3, 0, 1, 2) / 255

    def forward(self, videos: Tensor) -> Tensor:
        return 30 * self.layer(videos.flatten(1))


class InTurn(Team):
    """A rank whose turn comes after the ranks above it have finished: they need not be waited for."""

    def wait(self) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 short videos of noise that moves to the right, four of them lighter."""
    place = tmp_path_factory.mktemp("videos")
    for index in range(24):
        noise = np.random.default_rng(index).integers(0, 200, (8, 12, 3), np.uint8).repeat(4, 0).repeat(4, 1)
        frames = np.stack([noise[:, shift : shift + 32] for shift in range(6)])
        write_video(
            Video(frames + np.uint8(50 * (index % 6 == 0)), 8.0, {"prompt": f"a red ball {index}"}), place / f"{index:02d}.mp4"
        )
    return place


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP in transformers' layout."""
    place = tmp_path_factory.mktemp("clip")
    tiny.write_runs(place / "runs")
    target = place / "runs" / "text_encoder" / "network"
    load_tokenizer(place / "runs").save_pretrained(target)
    return target


SAMPLING = Sampling(4, 1, 32)


def measures(clip_folder: Path) -> list[Any]:
    real = GroupedMoments(Network.dimensions)
    real.add(np.random.default_rng(0).normal(size=(60, 5)), np.arange(60))
    clip, source = load_clip(clip_folder)
    return [
        Inception(Network(), SOURCE),
        Frechet(Network(), SOURCE, lambda: RealVideos(real, {"names": "x"})),
        ClipSimilarity(clip, source, lambda index: f"a red ball {index}"),
        Steadiness(),
    ]


def measured(folder: Path, output: Path, clip_folder: Path, team: Team = ALONE, batch_size: int = 8) -> dict[str, Any]:
    videos, found = VideoFolderSamples(folder, SAMPLING), measures(clip_folder)
    seen = measure(videos, found, output, team, batch_size=batch_size)
    if not team.ranks.first:
        return {}
    assert seen.samples == 24
    results, _ = conclude(videos, found, seen, output)
    return {result.metric: result for result in results}


@pytest.fixture(scope="module")
def whole(folder: Path, clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return measured(folder, tmp_path_factory.mktemp("whole"), clip_folder)


def assert_alike(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for metric, result in first.items():
        assert second[metric].value == pytest.approx(result.value, rel=1e-9, abs=1e-12), metric
        assert second[metric].interval == pytest.approx(result.interval, rel=1e-6, abs=1e-9), metric
        assert second[metric].fingerprint == result.fingerprint


def test_the_batch_does_not_matter(folder: Path, clip_folder: Path, tmp_path: Path, whole: dict[str, Any]) -> None:
    assert_alike(measured(folder, tmp_path, clip_folder, batch_size=5), whole)


def test_the_number_of_ranks_does_not_matter(folder: Path, clip_folder: Path, tmp_path: Path, whole: dict[str, Any]) -> None:
    for rank in (2, 1, 0):
        found = measured(folder, tmp_path, clip_folder, InTurn(Ranks(rank, 3, torch.device("cpu"))))
    assert_alike(found, whole)
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(24))
    assert np.mean([line["clip_similarity"] for line in lines]) == pytest.approx(whole["clip_similarity"].value)
    assert not (tmp_path / ".parts").exists()


def test_results_carry_the_protocol(whole: dict[str, Any]) -> None:
    assert whole.keys() == {
        "inception_score", "frechet_video_distance", "clip_similarity",
        "motion_flow", "motion_change", "still_share", "warping_error",
    }  # fmt: skip
    fvd = whole["frechet_video_distance"]
    assert (fvd.fingerprint["num_frames"], fvd.fingerprint["height"], fvd.fingerprint["fps"]) == (4, 32, 8.0)
    assert fvd.fingerprint["features"]["sha256"] == "0" * 64
    assert fvd.fingerprint["protocol"]["real"] == {"names": "x"}
    assert "every 8th pixel" in fvd.fingerprint["resize"]
    assert fvd.details["noise_floor_of_real"] > 0
    assert fvd.details["rank_deficient"] is False
    assert whole["motion_flow"].value > 0
    assert whole["still_share"].value == 0


def test_a_bad_video_is_named_or_skipped_and_counted(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "videos"
    place.mkdir()
    for index in range(3):
        os.link(folder / f"{index:02d}.mp4", place / f"{index}.mp4")
    (place / "1.mp4").unlink()
    (place / "1.mp4").write_bytes(b"no video")
    request = Request(tmp_path / "out", folder=place, sampling=SAMPLING)
    with pytest.raises(UserError, match=r"1\.mp4.*--skip-bad"):
        evaluate(request, ALONE, lambda _: None)
    told: list[str] = []
    results = evaluate(dataclasses.replace(request, skip_bad=True), ALONE, told.append)
    assert {(result.samples, result.skipped) for result in results} == {(2, 1)}
    assert any("1.mp4 was left out" in line for line in told)
    assert read_result(tmp_path / "out" / "motion_flow.json").details["skipped"][0]["name"] == "1.mp4"
    for index in (0, 2):
        (place / f"{index}.mp4").unlink()
    with pytest.raises(UserError, match="none of the 1 videos"):
        evaluate(dataclasses.replace(request, skip_bad=True), ALONE, told.append)


def test_too_few_videos_are_told(folder: Path, tmp_path: Path) -> None:
    videos = VideoFolderSamples(folder, SAMPLING, names=["00.mp4", "01.mp4", "02.mp4"])
    real = GroupedMoments(5)
    real.add(np.random.default_rng(0).normal(size=(60, 5)), np.arange(60))
    found = [Frechet(Network(), SOURCE, lambda: RealVideos(real, {})), Inception(Network(), SOURCE)]
    results, warnings = conclude(videos, found, measure(videos, found, tmp_path, ALONE), tmp_path)
    assert any("rank-deficient: 3 of these videos for 5 dimensions" in warning for warning in warnings)
    assert any("3 videos in 10 splits" in warning for warning in warnings)
    assert results[0].details["rank_deficient"] is True
    assert results[0].details["noise_floor_of_these"] is None


def test_real_videos_are_taken_in_once(folder: Path, tmp_path: Path) -> None:
    network: Any = Network()
    first = real_videos(RealSet(folder, SAMPLING), network, SOURCE, tmp_path, ALONE)()
    saved = RealSet(tmp_path / "real.safetensors", SAMPLING)
    again = real_videos(saved, network, SOURCE, tmp_path, ALONE)()
    assert np.array_equal(first.moments.whole().covariance, again.moments.whole().covariance)
    assert first.identity == again.identity
    assert (first.identity["videos"], first.identity["skipped"]) == ("24", "0")
    with pytest.raises(UserError, match="made with another network"):
        real_videos(saved, network, dataclasses.replace(SOURCE, sha256="1" * 64), tmp_path, ALONE)
    with pytest.raises(UserError, match="made with another stride"):
        real_videos(dataclasses.replace(saved, sampling=Sampling(4, 2, 32)), network, SOURCE, tmp_path, ALONE)
    (tmp_path / "odd.safetensors").write_bytes(b"odd")
    with pytest.raises(UserError, match="no moments of real videos"):
        real_videos(RealSet(tmp_path / "odd.safetensors", SAMPLING), network, SOURCE, tmp_path, ALONE)


def test_references_are_found_by_name_at_any_size(folder: Path, tmp_path: Path) -> None:
    videos = VideoFolderSamples(folder, SAMPLING, names=["00.mp4"])
    fidelity = ReferenceFidelity(tmp_path, SAMPLING)
    with pytest.raises(UserError, match=r"no reference image for 00\.mp4"):
        measure(videos, [fidelity], tmp_path / "out", ALONE)
    Image.fromarray(videos.read(0).frames[0]).resize((64, 64), Image.Resampling.NEAREST).save(tmp_path / "00.png")
    measure(videos, [fidelity], tmp_path / "out", ALONE)
    values = {number.metric: number.value for number in fidelity.numbers()}
    assert values["reference_psnr"] > 25
    assert values["reference_ssim"] > 0.9


# A pipeline's videos


def production(tiny_folder: Path, **changes: Any) -> Production:
    return dataclasses.replace(Production(str(tiny_folder), seed=5, options=OPTIONS, batch_size=2), **changes)


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def made(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("made")
    made = production(tiny_folder)
    assert generate_missing(made, made.jobs(PROMPTS), output, ALONE) == [f"{index:06d}.mp4" for index in range(3)]
    return output


def test_videos_are_those_of_generate_with_their_references(made: Path, tiny_folder: Path, tiny_pipe: VideoGenPipeline) -> None:
    assert sorted(digests(made)) == [
        *(f"references/{index:06d}.png" for index in range(3)),
        *(f"videos/{index:06d}.{ending}" for index in range(3) for ending in ("json", "mp4")),
    ]
    job = production(tiny_folder).jobs(PROMPTS)[2]
    ((_, video),) = generate(tiny_pipe, [job], OPTIONS)
    written = read_video(made / "videos" / "000002.mp4")
    assert written.frames.shape == video.frames.shape
    assert (written.provenance["seed"], written.provenance["prompt"]) == (7, PROMPTS[2])
    assert len({digests(made)[f"references/{index:06d}.png"] for index in range(3)}) == 3


def test_what_is_missing_is_made_again_alike_by_any_rank(made: Path, tiny_folder: Path) -> None:
    before = digests(made)
    (made / "videos" / "000001.mp4").unlink()
    (made / "videos" / "000002.mp4").unlink()
    told: list[str] = []
    again = production(tiny_folder, batch_size=1)
    for rank in range(2):
        generate_missing(again, again.jobs(PROMPTS), made, InTurn(Ranks(rank, 2, torch.device("cpu"))), told.append)
    assert [line for line in told if "missing" in line] == ["1 of 2 videos are missing", "1 of 1 videos are missing"]
    after = digests(made)
    assert after.keys() == before.keys()
    for name in ("videos/000001.mp4", "videos/000002.mp4"):
        first, second = read_video(made / name), before[name]
        assert after[name] == second or len(first) == 3  # another batch may change the last bits of a frame
    generate_missing(again, again.jobs(PROMPTS), made, ALONE, lambda line: pytest.fail(line))


@pytest.mark.parametrize(
    ("changes", "prompts", "named"),
    [
        ({"seed": 6}, PROMPTS, "seed"),
        ({"reference": "none"}, PROMPTS, "reference"),
        ({"options": dataclasses.replace(OPTIONS, guidance_scale=2.0)}, PROMPTS, "guidance scale"),
        ({}, ["a red ball falls"], "prompt"),
    ],
)
def test_another_runs_videos_are_not_taken_for_ours(
    made: Path, tiny_folder: Path, changes: dict[str, Any], prompts: list[str], named: str
) -> None:
    other = production(tiny_folder, **changes)
    with pytest.raises(UserError, match=f"made with another {named}"):
        generate_missing(other, other.jobs(prompts), made, ALONE)


def test_a_pipeline_is_evaluated_whole(made: Path, tiny_folder: Path, clip_folder: Path) -> None:
    request = Request(
        made, production(tiny_folder), Prompts.of(PROMPTS, "ours"), networks=Networks(clip=str(clip_folder)),
        sampling=Sampling(3, 1, 32), protocol={"benchmark": "none"},
    )  # fmt: skip
    results = {result.metric: result for result in evaluate(request, ALONE, lambda _: None)}
    assert results.keys() >= {"clip_similarity", "reference_psnr", "motion_flow", "warping_error"}
    said = results["clip_similarity"].fingerprint
    assert said["prompts_sha256"] == Prompts.of(PROMPTS, "ours").sha256
    assert said["seeds"]["first"] == 5
    assert said["protocol"]["list"] == "ours"
    assert read_result(made / "clip_similarity.json") == results["clip_similarity"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "either a pipeline"),
        ({"folder": Path(), "networks": Networks(i3d=Path("x"))}, "FVD needs both"),
        ({"production": Production("x")}, "needs prompts"),
    ],
)
def test_requests_that_make_no_sense(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(Request(tmp_path, **changes), ALONE, lambda _: None)


@pytest.mark.timeout(600)  # three processes that import torch
def test_two_processes_equal_one(folder: Path, tmp_path: Path) -> None:
    evaluation = ["-m", "videogen", "evaluate", "videos", str(folder), "--num-frames", "4", "--size", "32", "--device", "cpu"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *evaluation]
    run = subprocess.run([*command, "-o", str(tmp_path / "two")], check=False, capture_output=True, text=True, timeout=560)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("motion_flow") == 1  # one rank speaks
    evaluate(Request(tmp_path / "one", folder=folder, sampling=SAMPLING), ALONE, lambda _: None)
    for metric in ("motion_flow", "warping_error"):
        one, two = (read_result(tmp_path / place / f"{metric}.json") for place in ("one", "two"))
        assert two.value == pytest.approx(one.value, rel=1e-9)
        assert (two.samples, two.interval) == (one.samples, pytest.approx(one.interval))
