"""Folders of weights: what is damaged or foreign is refused in one line that names it, what is whole loads bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from tiny import UNET, alive, randn, write_runs
from videogen.config import UserError
from videogen.models.folders import assemble
from videogen.models.pretrained import COMPONENTS, load_component, load_network, load_text, pipeline_folder
from videogen.models.unet import VideoUNet
from videogen.pipeline import VideoGenPipeline

NETWORKS = [name for name in COMPONENTS if name not in ("tokenizer", "scheduler")]


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A pipeline folder to damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "pipeline"))


def weights(folder: Path, name: str) -> Path:
    (file,) = (folder / name).glob("*.safetensors")
    return file


def rewrite(folder: Path, name: str, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(weights(folder, name))
    change(tensors)
    save_file(tensors, weights(folder, name), metadata={"format": "pt"})


def without_folder(folder: Path, name: str) -> None:
    shutil.rmtree(folder / name)


def without_weights(folder: Path, name: str) -> None:
    weights(folder, name).unlink()


def cut_short(folder: Path, name: str) -> None:
    file = weights(folder, name)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(folder: Path, name: str) -> None:
    weights(folder, name).write_bytes(b"")


def no_safetensors(folder: Path, name: str) -> None:
    weights(folder, name).write_bytes(b"\xff" * 500)


def wrong_shape(folder: Path, name: str) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        first = sorted(tensors)[0]
        tensors[first] = torch.zeros(*tensors[first].shape, 2)

    rewrite(folder, name, change)


def not_a_number(folder: Path, name: str) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[sorted(tensors)[-1]].view(-1)[0] = torch.nan

    rewrite(folder, name, change)


def one_missing(folder: Path, name: str) -> None:
    rewrite(folder, name, lambda tensors: tensors.__delitem__(sorted(tensors)[-1]))


def one_too_many(folder: Path, name: str) -> None:
    rewrite(folder, name, lambda tensors: tensors.__setitem__("extra.weight", torch.zeros(3)))


def pickle_only(folder: Path, name: str) -> None:
    file = weights(folder, name)
    file.with_suffix(".bin").write_bytes(b"never to be opened")
    file.unlink()


def config_missing(folder: Path, name: str) -> None:
    (folder / name / "config.json").unlink()


def config_broken(folder: Path, name: str) -> None:
    (folder / name / "config.json").write_text('{"sample_size": ')


def config_no_table(folder: Path, name: str) -> None:
    (folder / name / "config.json").write_text("[1, 2]")


def config_of_wrong_types(folder: Path, name: str) -> None:
    table = json.loads((folder / name / "config.json").read_text())
    changed = {key: "wide" if isinstance(value, (int, list)) else value for key, value in table.items()}
    (folder / name / "config.json").write_text(json.dumps(changed))


DAMAGES = (
    without_folder, without_weights, cut_short, empty, no_safetensors, wrong_shape, not_a_number, one_missing, one_too_many,
    pickle_only, config_missing, config_broken, config_no_table, config_of_wrong_types,
)  # fmt: skip


def refusal(folder: Path, only: str | None = None) -> str:
    given = {} if only is None else {name: None for name in COMPONENTS if name != only}
    with pytest.raises(UserError) as refused:
        VideoGenPipeline.from_pretrained(folder, **given)
    line = str(refused.value)
    assert "\n" not in line
    assert len(line) < 400
    return line


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["text_encoder", "vae", "base"])  # transformers', diffusers' and our own classes
def test_a_damaged_component_is_refused_by_name(folder: Path, name: str, damage: Callable[[Path, str], None]) -> None:
    damage(folder, name)
    assert name in refusal(folder, name)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_checked(folder: Path, name: str) -> None:
    not_a_number(folder, name)
    assert f"/{name}: " in refusal(folder, name)


def test_a_tokenizer_without_its_vocabulary_is_refused(folder: Path) -> None:
    for file in (folder / "tokenizer").iterdir():
        if file.name != "tokenizer_config.json":
            file.unlink()
    assert "tokenizer" in refusal(folder)


def test_a_broken_tokenizer_or_scheduler_is_refused(folder: Path) -> None:
    (folder / "scheduler" / "scheduler_config.json").write_text("{")
    assert "scheduler" in refusal(folder)
    for file in (folder / "tokenizer").glob("*.json"):
        file.write_text("{")
    assert "tokenizer" in refusal(folder)


def reindex(folder: Path, **changes: object) -> None:
    table = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**table, **changes}))


@pytest.mark.parametrize("entry", ["VideoUNet", [], ["videogen"], {}, 3, ["videogen.models.unet", 3], ["os", "system"]])
@pytest.mark.parametrize("name", ["base", "scheduler"])
def test_an_index_that_names_something_else_is_refused(folder: Path, name: str, entry: object) -> None:
    reindex(folder, **{name: entry})
    assert name in refusal(folder, name)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("base_fps", "fast"),
        ("base_fps", 0),
        ("guidance_scale", None),
        ("guidance_rescale", 2),
        ("base_guidance_from", -0.1),
        ("details_from", 0),
        ("details_guidance_scale", -1),
        ("eta", 1),
        ("num_inference_steps", 2),
        ("num_inference_steps", {"super_resolution_1": 2.5}),
        ("num_inference_steps", {"base": 0}),
        ("num_inference_steps", {"bass": 20}),
    ],
)
def test_options_of_the_index_are_checked(folder: Path, key: str, value: object) -> None:
    reindex(folder, **{key: value})
    assert key in refusal(folder, "scheduler")


def test_an_index_without_a_component_or_of_another_pipeline_is_refused(folder: Path) -> None:
    table = json.loads((folder / "model_index.json").read_text())
    del table["refiner"]
    (folder / "model_index.json").write_text(json.dumps(table))
    assert "lacks the component 'refiner': train it and assemble again" in refusal(folder)
    reindex(folder, _class_name="StableDiffusionPipeline")
    assert "names another pipeline" in refusal(folder)
    (folder / "model_index.json").unlink()
    assert "no readable model_index.json" in refusal(folder)


def test_a_component_may_be_given_or_left_out(folder: Path) -> None:
    pipe = VideoGenPipeline.from_pretrained(folder, unet=None)
    assert pipe.unet is None
    assert VideoGenPipeline.from_pretrained(folder, base=pipe.base, unet=None).base is pipe.base
    with pytest.raises(UserError, match="has no component 'unets'; it has tokenizer"):
        VideoGenPipeline.from_pretrained(folder, unets=None)
    pipe.save_pretrained(folder.with_name("without"))
    assert VideoGenPipeline.from_pretrained(folder.with_name("without")).unet is None


def test_a_network_loads_bit_for_bit_and_frozen(folder: Path) -> None:
    torch.manual_seed(0)
    network = alive(VideoUNet(**UNET)).eval()
    network.save_pretrained(folder / "other")
    loaded = load_component(VideoUNet, folder, "other")
    given = {"sample": randn(1, 2, 4, 4, 4), "timestep": torch.tensor([5]), "fps": torch.tensor([4.0]), "text": randn(1, 3, 32)}
    assert torch.equal(loaded(**given), network(**given))
    assert not loaded.training
    assert not any(item.requires_grad for item in loaded.parameters())


def test_half_precision_on_disk_is_float32_in_memory_unless_asked(tiny_folder: Path, tmp_path: Path) -> None:
    assert assemble(tiny_folder.parent / "runs", tmp_path / "half") == []
    tensors = load_file(weights(tmp_path / "half", "text_encoder"))
    assert {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()} == {torch.float16}
    tokenizer, text_encoder = load_text(tmp_path / "half")
    assert text_encoder.dtype == torch.float32
    assert len(tokenizer) > 100
    assert load_component(VideoUNet, tmp_path / "half", "base").dtype == torch.float32
    pipe = VideoGenPipeline.from_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    assert {getattr(pipe, name).dtype for name in NETWORKS} == {torch.bfloat16}


def test_assembling_goes_on_as_the_chain_does(tmp_path: Path) -> None:
    runs, output = tmp_path / "runs", tmp_path / "pipeline"
    write_runs(runs)
    later = {name: (runs / place).parent for name, (place, _) in COMPONENTS.items() if name in ("base", "refiner")}
    for place in later.values():
        place.rename(place.with_name(f"{place.name}.later"))
    assert assemble(runs, output) == ["base", "refiner"]
    assert load_network(CLIPTextModel, output / "text_encoder").config.hidden_size == 32
    assert "lacks the component 'base'" in refusal(output)
    for place in later.values():
        place.with_name(f"{place.name}.later").rename(place)
    assert assemble(runs, output) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pipeline", "runs"]
    assert pipeline_folder(str(output)) == output


def test_assembling_from_nothing_or_over_something_else_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to assemble"):
        assemble(tmp_path, tmp_path / "pipeline")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_text("dear")
    with pytest.raises(UserError, match="photos exists and is not a pipeline folder"):
        assemble(tiny_folder.parent / "runs", tmp_path / "photos")
    with pytest.raises(UserError, match="cannot write"):
        assemble(tiny_folder.parent / "runs", tmp_path / "photos" / "holiday.jpg" / "pipeline")
    assert [path.name for path in tmp_path.rglob("*")] == ["photos", "holiday.jpg"]


def test_a_failed_assembly_leaves_the_old_folder_and_nothing_else(tiny_folder: Path, tmp_path: Path) -> None:
    runs = Path(shutil.copytree(tiny_folder.parent / "runs", tmp_path / "runs"))
    output = Path(shutil.copytree(tiny_folder, tmp_path / "pipeline"))
    cut_short(runs / "refiner", "network")
    with pytest.raises(UserError, match=r"cannot load VideoUNet from .*refiner"):
        assemble(runs, output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pipeline", "runs"]
    assert VideoGenPipeline.from_pretrained(output).refiner is not None
