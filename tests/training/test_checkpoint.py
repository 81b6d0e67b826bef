"""Checkpoints: whole or not taken, and only for the recipe that made them."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from toy import Denoise, ToyClips, recipe

from videogen.config import UserError
from videogen.training.checkpoint import export_network, find_checkpoint, read_export
from videogen.training.trainer import run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run")
    torch.manual_seed(1)
    run(recipe(), Denoise(adversary=True), ToyClips(), output)
    return output


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    """A run of six steps that has checkpoints of steps 4 and 6 and has lost its export."""
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "network")
    return tmp_path / "run"


def damage(path: Path, how: str) -> None:
    if how == "cut short":
        path.write_bytes(path.read_bytes()[:-7])
    elif how == "first bit":
        content = bytearray(path.read_bytes())
        content[0] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()


def test_older_checkpoints_are_retired(output: Path) -> None:
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]


@pytest.mark.parametrize("how", ["cut short", "first bit", "missing"])
@pytest.mark.parametrize("name", ["network.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_told_and_passed_over(output: Path, name: str, how: str) -> None:
    damage(output / "checkpoints" / "step-00000006" / name, how)
    told: list[str] = []
    assert find_checkpoint(output / "checkpoints", told.append) == output / "checkpoints" / "step-00000004"
    assert len(told) == 1
    assert "step-00000006 is damaged" in told[0]
    assert "going on from step-00000004" in told[0]


def test_the_run_goes_on_from_the_checkpoint_before(finished: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest = output / "checkpoints" / "step-00000006" / "ema.safetensors"
    damage(newest, "cut short")
    run(recipe(), Denoise(adversary=True), ToyClips(), output)
    assert "step-00000006 is damaged (ema.safetensors is not as it was written)" in capsys.readouterr().err
    assert newest.read_bytes() == (finished / "checkpoints" / "step-00000006" / "ema.safetensors").read_bytes()
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]


def test_without_a_whole_checkpoint_the_run_refuses(output: Path) -> None:
    for path in (output / "checkpoints").glob("*/network.safetensors"):
        damage(path, "cut short")
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole"):
        run(recipe(), Denoise(adversary=True), ToyClips(), output)


def test_a_half_written_folder_is_not_a_checkpoint(output: Path) -> None:
    (output / "checkpoints" / ".step-00000008.partial").mkdir()
    found = find_checkpoint(output / "checkpoints", pytest.fail)
    assert found is not None
    assert found.name == "step-00000006"
    run(recipe(steps=8), Denoise(adversary=True), ToyClips(), output)
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == ["step-00000006", "step-00000008"]


def test_a_changed_recipe_is_refused_by_its_field(output: Path) -> None:
    with pytest.raises(UserError, match=r"loop.batch_size was 4 and is 8; set it back"):
        run(recipe(batch_size=8), Denoise(adversary=True), ToyClips(), output)
    with pytest.raises(UserError, match=r"network.width was 4 and is absent"):
        run(dataclasses.replace(recipe(), network={}), Denoise(adversary=True), ToyClips(), output)
    run(recipe(workers=1, save_every=5, log_every=3, keep_checkpoints=1, steps=7), Denoise(adversary=True), ToyClips(), output)


def test_a_network_of_another_shape_is_refused(output: Path) -> None:
    class Wider(Denoise):
        def build(self, network: object) -> torch.nn.Module:
            return super().build({"width": 5})

    with pytest.raises(UserError, match=r"does not fit the network of this recipe, first at first.bias"):
        run(recipe(), Wider(adversary=True), ToyClips(), output)


def test_an_export_replaces_the_one_before(tmp_path: Path) -> None:
    network = Denoise().build({})
    for step in (1, 2):
        export_network(network, tmp_path / "network", {"step": step})
    assert (read_export(tmp_path / "network") or {})["step"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["network"]


def test_an_output_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        run(recipe(), Denoise(), ToyClips(), tmp_path / "taken" / "run")
