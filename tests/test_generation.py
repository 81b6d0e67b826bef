"""Statements about the generation iterator and the generate command, with a tiny untrained pipeline of real parts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer  # noqa: E402

from videogen import cli  # noqa: E402
from videogen.config import UserError  # noqa: E402
from videogen.data.diorama import VOCABULARY  # noqa: E402
from videogen.data.prepare import write_tokenizer  # noqa: E402
from videogen.generation import GenerationOptions, Job, Reference, describe_model, generate, make_jobs  # noqa: E402
from videogen.models.folders import mini_scheduler  # noqa: E402
from videogen.models.ifrnet import IFRNet  # noqa: E402
from videogen.models.unet import VideoUNet  # noqa: E402
from videogen.models.video_decoder import VideoDecoder  # noqa: E402
from videogen.pipeline import VideoGenPipeline  # noqa: E402
from videogen.video import read_provenance, read_video  # noqa: E402

STEPS = {"reference": 1, "base": 1, "super_resolution_1": 1, "super_resolution_2": 1, "refiner": 1}
UNET = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder: 32 x 32 pixels, latents of 4, 8 and 16."""
    place = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    write_tokenizer(place / "words")
    tokenizer = CLIPTokenizer.from_pretrained(place / "words")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    coder = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 8, "latent_channels": 4}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    VideoGenPipeline(
        tokenizer=tokenizer,
        text_encoder=CLIPTextModel(text).eval(),
        vae=AutoencoderKL(**coder, **blocks).eval(),
        unet=UNet2DConditionModel(sample_size=16, cross_attention_dim=16, **UNET).eval(),
        scheduler=mini_scheduler(),
        base=VideoUNet(sample_size=4, cross_attention_dim=16, **UNET).eval(),
        super_resolution_1=VideoUNet(sample_size=8, condition_channels=4, cross_attention_dim=16, **UNET).eval(),
        super_resolution_2=VideoUNet(sample_size=16, condition_channels=4, cross_attention_dim=16, **UNET).eval(),
        latent_flow=IFRNet(in_channels=4, channels=(8, 12, 16, 20)).eval(),
        refiner=VideoUNet(sample_size=16, reference=False, condition_channels=12, cross_attention_dim=None, **UNET).eval(),
        video_decoder=VideoDecoder(**coder).eval(),
    ).save_pretrained(place / "pipeline")
    return place / "pipeline"


@pytest.fixture(scope="module")
def pipe(folder: Path) -> VideoGenPipeline:
    return VideoGenPipeline.from_pretrained(folder)


OPTIONS = GenerationOptions(num_frames=3, temporal_factor=2, num_inference_steps=STEPS)


def test_the_vocabulary_is_words() -> None:
    assert all(isinstance(word, str) and word == word.lower() for word in VOCABULARY)


def test_a_video_is_the_same_alone_and_in_a_batch(pipe: VideoGenPipeline) -> None:
    jobs = make_jobs(["a red ball rises", "a blue box falls"], 5, 2, Reference("generated"))
    together = [video for _, video in generate(pipe, jobs, OPTIONS, batch_size=3)]
    assert [video.provenance["seed"] for video in together] == [5, 6, 7, 8]
    (_, alone), *_ = generate(pipe, [Job("a blue box falls", 7, 0)], OPTIONS)
    assert np.abs(alone.frames.astype(int) - together[2].frames).max() <= 1
    assert not np.array_equal(alone.frames, together[3].frames)


def test_what_is_written_suffices_to_make_it_again(pipe: VideoGenPipeline, folder: Path) -> None:
    jobs = make_jobs(["a red ball rises 🎈"], 2**63 - 1, 1, Reference("none"))
    ((_, video),) = generate(pipe, jobs, OPTIONS, origin=describe_model(str(folder)))
    note = json.loads(json.dumps(video.provenance))
    assert (note["prompt"], note["seed"], note["reference"]) == ("a red ball rises 🎈", 2**63 - 1, {"name": "none"})
    assert note["options"]["num_inference_steps"] == STEPS
    assert note["versions"].keys() == {"videogen", "torch", "diffusers", "transformers"}
    assert note["video"] == {"frames": 5, "height": 32, "width": 32, "fps": 8.0}
    file = folder / "base" / "diffusion_pytorch_model.safetensors"
    assert note["weights"]["base/diffusion_pytorch_model.safetensors"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert len(note["weights"]) == 9  # every network
    again = make_jobs([note["prompt"]], note["seed"], 1, Reference(note["reference"]["name"]))
    assert np.array_equal(next(generate(pipe, again, OPTIONS))[1].frames, video.frames)


def test_weights_that_are_not_numbers_are_reported(folder: Path) -> None:
    pipe = VideoGenPipeline.from_pretrained(folder)
    with torch.no_grad():
        pipe.video_decoder.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        list(generate(pipe, make_jobs(["a red ball"], 0, 1, Reference("none")), OPTIONS))


def test_generate_writes_what_it_says(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((50, 70), 80).convert("LA").save("photo.png")
    command = ["generate", "a red ball", "a blue star 🎈", "--model", str(folder), "--steps", "1", "--num-frames", "2"]
    command += ["--temporal-factor", "4", "--fps", "12", "--reference", "photo.png", "--seed", "9", "-o", "a.mp4"]
    assert cli.main(command) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [f"a-{index}.mp4: 5 frames of 32x32, 0.4 s" for index in range(2)], printed.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-0.json", "a-0.mp4", "a-1.json", "a-1.mp4", "photo.png"]
    video = read_video("a-1.mp4")
    assert (video.frames.shape, video.fps) == ((5, 32, 32, 3), 12)
    note = json.loads(Path("a-1.json").read_text(encoding="utf-8"))
    assert (note["prompt"], note["seed"], note["model"]) == ("a blue star 🎈", 10, str(folder))
    assert note["reference"]["name"] == "photo.png"
    assert read_provenance("a-1.mp4") == {key: value for key, value in note.items() if key != "made_by"}


@pytest.mark.filterwarnings("always:a prompt is longer")
@pytest.mark.parametrize("output", ["b.gif", "b.webm", "b/"])
def test_every_ending_and_no_reference(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["generate", "x" * 10_000, "--model", str(folder), "--steps", "1", "--num-frames", "1", "--temporal-factor", "1"]
    assert cli.main([*command, "--reference", "none", "--quiet", "-o", output]) == 0
    assert read_provenance(output)["prompt"] == "x" * 10_000
    assert capsys.readouterr().err.startswith("videogen: warning: a prompt is longer than the 40 tokens")


def test_a_model_that_is_none_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "a red ball", "--quiet", "--model", str(tmp_path), "-o", str(tmp_path / "a.mp4")]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("videogen: ")
    assert printed.count("\n") == 1
    assert not list(tmp_path.iterdir())
