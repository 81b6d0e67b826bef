"""The whole story through the command line: every network of mini is trained for two steps, assembled, and makes a video.

The recipes are the package's own, narrowed by --set, so a recipe that no longer fits its network fails here.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from videogen import cli
from videogen.models.pretrained import COMPONENTS
from videogen.video import read_video

PIXELS = 32  # the autoencoder makes 8 of them
LOOP = {
    "loop.steps": 2, "loop.batch_size": 2, "loop.save_every": 10, "loop.preview_every": 0, "loop.device": "cpu",
    "data.workers": 0, "data.size": PIXELS,
}  # fmt: skip
WIDTHS = {"network.block_out_channels": [8, 8, 16], "network.norm_num_groups": 4}
UNET = {**WIDTHS, "network.attention_head_dim": 2, "network.cross_attention_dim": 32}
TOWERS = {
    f"network.{tower}.{key}": value
    for tower in ("text_config", "vision_config")
    for key, value in {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}.items()
}
CLIP = {"data.num_frames": 3}
CROPPED = {"data.crop": PIXELS}
FIRST: dict[str, dict[str, object]] = {
    "text_encoder": {**TOWERS, "options.storyboard_frame": 16},
    "autoencoder": {**WIDTHS, **CROPPED, **CLIP},
}
OTHERS: dict[str, dict[str, object]] = {
    "text_to_image_small": {**UNET, "data.size": 16},
    "text_to_image": {**UNET, "network.sample_size": 8},
    "base": {**UNET, **CLIP, "network.sample_size": 2, "options.downscale": 4},
    "super_resolution_1": {**UNET, **CLIP, "network.sample_size": 4},
    "super_resolution_2": {**UNET, **CLIP, **CROPPED, "network.sample_size": 8},
    "latent_flow": {"network.channels": [8, 8, 8, 8]},
    "refiner": {
        "network.block_out_channels": [8, 16],
        "network.norm_num_groups": 4,
        **CLIP,
        **CROPPED,
        "network.sample_size": 8,
    },
    "video_decoder": {**CLIP, **CROPPED},
}


def videogen(*arguments: object) -> None:
    assert cli.main([str(argument) for argument in arguments]) == 0, arguments


def train(runs: Path, name: str, changes: dict[str, object]) -> None:
    settings = [word for key, value in {**LOOP, **changes}.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    videogen("train", f"mini/{name}", "-o", runs / name, *settings)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/mini.sh in small."""
    folder = tmp_path_factory.mktemp("chain") / "mini"
    videogen("prepare", "tokenizer", "-o", folder / "tokenizer")
    for name, changes in FIRST.items():
        train(folder, name, changes)
    videogen("assemble", "--from", folder, "-o", folder / "pipeline")
    for name, changes in OTHERS.items():
        train(folder, name, changes)
    videogen("assemble", "--from", folder, "-o", folder / "pipeline")
    return folder


def test_the_recipes_of_mini_are_all_trained_here() -> None:
    recipes = Path(cli.__file__).parent / "recipes" / "mini"
    assert {path.stem for path in recipes.glob("*.toml")} == {*FIRST, *OTHERS}


def test_every_run_leaves_a_network_and_its_story(runs: Path) -> None:
    for name in (*FIRST, *OTHERS):
        rows = [json.loads(line) for line in (runs / name / "log.jsonl").read_text().splitlines()]
        assert rows[-1]["step"] == 2, name
        assert all(torch.tensor(value).isfinite() for row in rows for value in row.values()), name
        assert json.loads((runs / name / "recipe.json").read_text())["loop"]["steps"] == 2
        assert list((runs / name / "network").glob("*.safetensors")), name


def test_the_pipeline_holds_what_was_trained(runs: Path) -> None:
    for name, (place, _) in COMPONENTS.items():
        if name in ("tokenizer", "scheduler", "text_encoder"):
            continue  # no weights, or a part of CLIP's
        (made,), (taken,) = ((folder.glob("*.safetensors")) for folder in (runs / place, runs / "pipeline" / name))
        trained, assembled = load_file(made), load_file(taken)
        assert trained.keys() == assembled.keys()
        assert all(torch.equal(trained[key].half(), assembled[key]) for key in trained), name


def test_the_trained_pipeline_makes_a_video(runs: Path, tmp_path: Path) -> None:
    output = tmp_path / "ball.mp4"
    steps = ("--steps", 1, "--num-frames", 2, "--temporal-factor", 4, "--seed", 3)
    videogen("generate", "a red ball bounces", "--model", runs / "pipeline", *steps, "-o", output)
    video = read_video(output)
    assert (video.frames.shape, video.fps) == ((5, PIXELS, PIXELS, 3), 16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ball.json", "ball.mp4"]
    assert json.loads((tmp_path / "ball.json").read_text())["prompt"] == "a red ball bounces"


def test_the_same_command_again_finds_everything_done(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (runs / "refiner" / "network" / "training.json").stat().st_mtime_ns
    train(runs, "refiner", OTHERS["refiner"])
    assert "done already" in capsys.readouterr().err
    assert (runs / "refiner" / "network" / "training.json").stat().st_mtime_ns == before
