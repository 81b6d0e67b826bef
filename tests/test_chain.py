"""The whole story through the command line: runs/mini.sh with every network narrow and trained for two steps, then a video.

The recipes are the package's own, changed by --set, so a recipe that no longer fits its network or its data fails here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from videogen import cli
from videogen.config import read_recipe
from videogen.models.pretrained import COMPONENTS
from videogen.video import read_video

pytestmark = pytest.mark.timeout(900)  # every training of the chain, in case the machine is busy with real ones

STORY = (Path(__file__).parent.parent / "runs" / "mini.sh").read_text()
STEPS = re.findall(r"^(?:step (\w+)|assemble)$", STORY, re.MULTILINE)  # names of recipes, "" where the script assembles
RECIPES = [name for name in STEPS if name]
SMALLER = 4  # a quarter of every size in pixels and latents
LOOP = {"steps": 2, "batch_size": 2, "save_every": 10, "preview_every": 0, "device": "cpu"}
NARROW = {"attention_head_dim": 2, "cross_attention_dim": 32, "norm_num_groups": 4, "channels": [8, 8, 8, 8]}
TOWER = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def changes(name: str) -> Iterator[tuple[str, Any]]:
    """What makes a recipe of mini tiny, by dotted keys."""
    recipe = read_recipe(f"mini/{name}")
    yield from ((f"loop.{key}", value) for key, value in LOOP.items())
    yield from (("data.workers", 0), ("data.size", max(16, recipe.data.size // SMALLER)))
    yield "data.num_frames", min(3, recipe.data.num_frames)
    if recipe.data.crop is not None:
        yield "data.crop", recipe.data.crop // SMALLER
    if getattr(recipe.options, "crop", None) is not None:
        yield "options.crop", recipe.options.crop // SMALLER
    for key in recipe.network:
        if key == "block_out_channels":
            yield f"network.{key}", [8] * (len(recipe.network[key]) - 1) + [16]
        elif key == "sample_size":
            yield f"network.{key}", recipe.network[key] // SMALLER
        elif key in NARROW:
            yield f"network.{key}", NARROW[key]
        elif key in ("text_config", "vision_config"):
            yield from ((f"network.{key}.{part}", value) for part, value in TOWER.items())


def videogen(*arguments: object) -> None:
    assert cli.main([str(argument) for argument in arguments]) == 0, arguments


def train(runs: Path, name: str) -> None:
    settings = [word for key, value in changes(name) for word in ("--set", f"{key}={json.dumps(value)}")]
    videogen("train", f"mini/{name}", "-o", runs / name, *settings)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/mini.sh in small."""
    folder = tmp_path_factory.mktemp("chain") / "mini"
    videogen("prepare", "tokenizer", "-o", folder / "tokenizer")
    for name in STEPS:
        if name:
            train(folder, name)
        else:
            videogen("assemble", "--from", folder, "-o", folder / "pipeline")
    return folder


def test_the_story_trains_every_recipe_of_mini_and_ends_with_a_pipeline() -> None:
    recipes = Path(cli.__file__).parent / "recipes" / "mini"
    assert sorted(RECIPES) == sorted(path.stem for path in recipes.glob("*.toml"))
    assert STEPS[-1] == ""


def test_every_run_leaves_a_network_and_its_story(runs: Path) -> None:
    for name in RECIPES:
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
    assert (video.frames.shape, video.fps) == ((5, 64, 64, 3), 16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ball.json", "ball.mp4"]
    assert json.loads((tmp_path / "ball.json").read_text())["prompt"] == "a red ball bounces"


def test_the_same_command_again_finds_everything_done(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (runs / "refiner" / "network" / "training.json").stat().st_mtime_ns
    train(runs, "refiner")
    assert "done already" in capsys.readouterr().err
    assert (runs / "refiner" / "network" / "training.json").stat().st_mtime_ns == before
