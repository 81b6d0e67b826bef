"""`videogen init` (section 3.5): every tensor of Stable Diffusion is accounted for, what is no Stable Diffusion is named."""

from __future__ import annotations

import inspect
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from tiny import LIKE_SD, generators, randn, write_stable_diffusion
from videogen import cli
from videogen.config import UserError, read_recipe
from videogen.models.pretrained import COMPONENTS, other_scheduler
from videogen.models.stable_diffusion import REPORT, describe, initialize_folder, refiner_arguments, unet_arguments
from videogen.models.unet import VideoUNet
from videogen.pipeline import VideoGenPipeline

Made = tuple[Path, Path, dict[str, Any]]


@pytest.fixture(scope="module", params=[1, 2], ids=["SD 1.x", "SD 2.x"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """(Stable Diffusion's folder, VideoGen's, the report). Not to be written to."""
    folder = tmp_path_factory.mktemp("init")
    source = write_stable_diffusion(folder, version=request.param)
    return source, folder / "videogen", initialize_folder(str(source), folder / "videogen", "float32")


def tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    (file,) = (folder / name).glob("*.safetensors")
    return load_file(file)


def test_every_tensor_is_accounted_for_by_name(made: Made) -> None:
    source, folder, report = made
    parts = report["components"]
    assert parts.keys() == COMPONENTS.keys() - {"tokenizer", "scheduler"}
    for name, part in parts.items():
        own = tensors(folder, name)
        assert sorted([*part["copied"], *part["widened"], *part["new"]]) == sorted(own), name
        origin = {} if part["from"] is None else tensors(source if name in ("vae", "unet") else folder, part["from"])
        for key in part["copied"]:
            assert torch.equal(own[key], origin[key]), (name, key)
        for key in part["widened"]:
            narrow = origin[key]
            assert torch.equal(own[key][:, : narrow.shape[1]], narrow)
            assert not own[key][:, narrow.shape[1] :].any()
    for name, below in (("base", "unet"), ("super_resolution_1", "base"), ("super_resolution_2", "super_resolution_1")):
        assert parts[name]["from"] == below
        assert set(parts[name]["copied"]) | set(parts[name]["widened"]) == set(tensors(folder, below))
    decoder = {name for name in tensors(source, "vae") if name.startswith(("decoder.", "post_quant_conv."))}
    assert set(parts["video_decoder"]["copied"]) == decoder
    assert [len(parts[name]["copied"]) for name in ("latent_flow", "refiner")] == [0, 0]
    assert json.loads((folder / REPORT).read_text()) == report
    lines = "\n".join(describe(report))
    assert "refiner" in lines
    assert "widened (channels of the reference or the low resolution; zero at the start)" in lines


@torch.no_grad()
def test_the_folder_makes_videos_whose_networks_are_the_image_networks(made: Made) -> None:
    source, folder, _ = made
    pipe = VideoGenPipeline.from_pretrained(folder)
    image = UNet2DConditionModel.from_pretrained(source, subfolder="unet")
    latents, text = randn(1, 3, 4, 2, 2), randn(1, 5, LIKE_SD["cross_attention_dim"])
    t = torch.tensor([300])
    found = pipe.base(latents, t, fps=torch.tensor([8.0]), text=text, reference=randn(1, 4, 2, 2))
    expected = torch.stack([image(frame, t, text).sample for frame in latents.unbind(1)], 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    coder = AutoencoderKL.from_pretrained(source, subfolder="vae")
    frames = torch.stack([coder.decode(frame / coder.config.scaling_factor).sample for frame in latents.unbind(1)], 1)
    torch.testing.assert_close(pipe.video_decoder(latents), frames, rtol=0, atol=1e-4)
    assert (pipe.size, pipe.base.config.sample_size) == ((32, 32), 2)
    assert isinstance(pipe.scheduler, DDIMScheduler)
    assert not pipe.scheduler.config.clip_sample  # latents are no pixels
    assert not other_scheduler(EulerDiscreteScheduler(), "ddim").config.clip_sample
    written = json.loads((source / "scheduler" / "scheduler_config.json").read_text())
    assert {key: pipe.scheduler.config[key] for key in ("beta_start", "steps_offset", "prediction_type")} == {
        key: written[key] for key in ("beta_start", "steps_offset", "prediction_type")
    }


def test_loading_sampling_and_saving_again_changes_nothing(made: Made, tmp_path: Path) -> None:
    _, folder, _ = made
    pipe = VideoGenPipeline.from_pretrained(folder)
    options: dict[str, Any] = {"num_frames": 2, "temporal_factor": 2, "num_inference_steps": 1, "output_type": "pt"}
    video = pipe("a red ball", generator=generators(0), **options).frames
    assert video.isfinite().all()
    pipe.save_pretrained(tmp_path / "again")
    for name in COMPONENTS:
        for file in (folder / name).iterdir():
            other = tmp_path / "again" / name / file.name
            if file.suffix == ".safetensors":
                before, after = load_file(file), load_file(other)
                assert before.keys() == after.keys()
                assert all(torch.equal(item, after[key]) for key, item in before.items()), name
            elif file.suffix == ".json" and name != "tokenizer":
                before, after = (json.loads(path.read_text()) for path in (file, other))
                assert {**before, "_name_or_path": ""} == {**after, "_name_or_path": ""}, file
    again = VideoGenPipeline.from_pretrained(tmp_path / "again")
    assert torch.equal(again("a red ball", generator=generators(0), **options).frames, video)


def test_half_precision_is_the_default_and_the_same_each_time(made: Made, tmp_path: Path) -> None:
    source, _, _ = made
    for name in ("one", "two"):
        initialize_folder(str(source), tmp_path / name)
    assert torch.get_default_dtype() == torch.float32
    for name in COMPONENTS.keys() - {"tokenizer", "scheduler"}:
        one, two = tensors(tmp_path / "one", name), tensors(tmp_path / "two", name)
        assert {item.dtype for item in one.values() if item.is_floating_point()} == {torch.float16}
        assert all(torch.equal(item, two[key]) for key, item in one.items())


SD_1: dict[str, Any] = {
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "norm_num_groups": 32,
}


def test_at_stable_diffusions_widths_the_arguments_are_the_recipes() -> None:
    shape = unet_arguments({**UNet2DConditionModel(**LIKE_SD).config, **SD_1})
    standard = inspect.signature(VideoUNet).parameters

    def recipe(name: str) -> dict[str, Any]:
        """All arguments of a recipe's network, those that it leaves out too."""
        given = read_recipe(f"sd/{name}").network
        whole = {**{key: item.default for key, item in standard.items()}, **given}
        return {key: tuple(value) if isinstance(value, list) else value for key, value in whole.items()}

    for name, size in (("base", 16), ("super_resolution_1", 32), ("super_resolution_2", 64)):
        condition = 0 if name == "base" else 4
        assert recipe(name) == {**recipe(name), **shape, "sample_size": size, "condition_channels": condition}
    assert recipe("refiner") == {**recipe("refiner"), **refiner_arguments(shape, 64, 4)}


def test_old_names_of_the_autoencoders_attention_load(tmp_path: Path) -> None:
    """Stable Diffusion 1.5's own vae is written so."""
    source = write_stable_diffusion(tmp_path)
    file = source / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in load_file(file).items():
        for new, before in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        renamed[name] = tensor
    assert any("proj_attn" in name for name in renamed)
    save_file(renamed, file, metadata={"format": "pt"})
    report = initialize_folder(str(source), tmp_path / "out", "float32")
    assert "decoder.mid_block.attentions.0.to_q.weight" in report["components"]["video_decoder"]["copied"]


def test_old_names_of_the_text_encoder_load(tmp_path: Path) -> None:
    """As older releases of transformers wrote them: a prefix, and the positions."""
    source = write_stable_diffusion(tmp_path)
    file = source / "text_encoder" / "model.safetensors"
    now = load_file(file)
    old = {name if name.startswith("text_model.") else f"text_model.{name}": tensor for name, tensor in now.items()}
    old["text_model.embeddings.position_ids"] = torch.arange(40)[None]
    save_file(old, file, metadata={"format": "pt"})
    initialize_folder(str(source), tmp_path / "out", "float32")
    made = {name.removeprefix("text_model."): item for name, item in tensors(tmp_path / "out", "text_encoder").items()}
    assert made.keys() == now.keys()
    assert all(torch.equal(item, now[name]) for name, item in made.items())


def reindex(folder: Path, **changes: Any) -> None:
    table = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**table, **changes}))


def rename_class(name: str) -> Callable[[Path], None]:
    return lambda folder: reindex(folder, _class_name=name)


def xl_parts(folder: Path) -> None:
    reindex(folder, unet=["diffusers", "FluxTransformer2DModel"])


def pickled(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))


def truncated(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    os.truncate(file, file.stat().st_size // 2)


def absent(folder: Path) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()


def no_part(folder: Path) -> None:
    shutil.rmtree(folder / "text_encoder")


def misshapen(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_out.bias"] = torch.zeros(5)
    save_file(weights, file, metadata={"format": "pt"})


def lora_folder(folder: Path) -> None:
    (folder / "model_index.json").unlink()
    save_file({"unet.mid.lora_A.weight": torch.zeros(2)}, folder / "pytorch_lora_weights.safetensors")


def single_inside(folder: Path) -> None:
    (folder / "model_index.json").unlink()
    (folder / "v1-5.ckpt").write_bytes(b"never to be opened")


def foreign(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def reconfigure(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "unet" / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


BAD: list[tuple[Callable[[Path], None], list[str]]] = [
    (rename_class("StableDiffusionXLPipeline"), ["holds a StableDiffusionXLPipeline"]),
    (rename_class("FluxPipeline"), ["holds a FluxPipeline"]),
    (xl_parts, ["its unet is a FluxTransformer2DModel"]),
    (pickled, ["as a pickle (diffusion_pytorch_model.bin)", "use_safetensors=False).save_pretrained"]),
    (truncated, ["cannot load UNet2DConditionModel"]),
    (absent, ["cannot load AutoencoderKL", "diffusion_pytorch_model.safetensors"]),
    (no_part, ["lacks the folder of its text_encoder"]),
    (misshapen, ["conv_out.bias", "[4]", "[5]"]),
    (lora_folder, ["is a LoRA", "pipeline.load_lora_weights"]),
    (single_inside, ["v1-5.ckpt is a single file", "from_single_file", "where you trust"]),
    (foreign, ["is not a Stable Diffusion folder: no readable model_index.json"]),
    (reconfigure(act_fn="gelu"), ["its act_fn is 'gelu'", "'silu'"]),
    (reconfigure(sample_size=6), ["sample_size must be a multiple of 4", "6"]),
]


@pytest.mark.parametrize(("damage", "told"), BAD)
def test_what_is_no_stable_diffusion_is_one_line_and_leaves_nothing(
    made: Made, damage: Callable[[Path], None], told: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(made[0], tmp_path / "sd"))
    damage(source)
    assert cli.main(["init", "--from", str(source), "-o", str(tmp_path / "out")]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    assert all(part in error for part in told), error
    assert [path.name for path in tmp_path.iterdir()] == ["sd"]


def test_files_and_names_that_are_no_folder_are_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    single, lora, checkpoint = (tmp_path / name for name in ("sd.safetensors", "style.safetensors", "sd.ckpt"))
    save_file({"model.diffusion_model.weight": torch.zeros(1)}, single)
    save_file({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.zeros(1)}, lora)
    checkpoint.write_bytes(b"never to be opened")
    for source, told in (
        (single, "is a single file"),
        (lora, "is a LoRA"),
        (checkpoint, "can run code"),
        (tmp_path / "not-there", "neither a folder nor a hub id"),
        ("nobody/no-such-model", "nobody/no-such-model is neither a folder nor a hub id that can be reached"),
    ):
        with pytest.raises(UserError, match=told) as refused:
            initialize_folder(str(source), tmp_path / "out")
        assert "\n" not in str(refused.value)
    (tmp_path / "kept").mkdir()
    for output, told in (("kept", "kept exists"), ("no/such", "there is no folder")):
        assert cli.main(["init", "--from", str(single), "-o", str(tmp_path / output)]) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_text_encoder_must_make_what_the_unet_reads(tmp_path: Path) -> None:
    source = write_stable_diffusion(tmp_path, cross_attention_dim=24)
    with pytest.raises(UserError, match="reads text states of 24 channels, the text_encoder makes 32"):
        initialize_folder(str(source), tmp_path / "out")


def test_the_command_prints_what_became_of_the_tensors(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init", "--from", str(made[0]), "-o", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"{tmp_path / 'out'}: complete"
    assert "tensors copied from unet" in out
    assert VideoUNet.load_config(tmp_path / "out" / "super_resolution_2")["condition_channels"] == 4
