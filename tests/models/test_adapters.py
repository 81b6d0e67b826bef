"""LoRA: adapters of every network train, save, load and fuse; those of Stable Diffusion's community load by their own names."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tiny import CODER, FLOW, TEXT, UNET, alive, generators, randn
from videogen.config import LoraOptions, UserError
from videogen.models.adapters import add_trained_adapter
from videogen.models.folders import MINI_SAMPLING
from videogen.models.ifrnet import IFRNet
from videogen.models.unet import VideoUNet
from videogen.models.video_decoder import VideoDecoder
from videogen.pipeline import VideoGenPipeline

CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-5}


def unet() -> nn.Module:
    return VideoUNet(sample_size=4, **UNET)


def run_unet(network: nn.Module) -> Tensor:
    given = {"timestep": torch.tensor([300]), "fps": torch.tensor([8.0]), "text": randn(1, 5, TEXT)}
    return network(randn(1, 3, 4, 4, 4), **given)


Kind = tuple[Callable[[], nn.Module], Callable[[nn.Module], Tensor], list[str]]
KINDS: dict[str, Kind] = {
    "attention": (unet, run_unet, ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "net.0.proj"]),
    "3x3 convolutions": (unet, run_unet, ["conv1", "conv2", "conv_shortcut", "time_emb_proj", "upsamplers.0.conv"]),
    "temporal convolutions": (unet, run_unet, ["temporal"]),
    "decoder": (
        lambda: VideoDecoder(**{**CODER, "mid_block_add_attention": True}),
        lambda network: network(randn(1, 3, 4, 4, 4)),
        ["conv1", "to_q"],
    ),
    "latent flow": (lambda: IFRNet(**FLOW), lambda network: network(randn(1, 4, 8, 8), randn(1, 4, 8, 8, seed=1)).frame, []),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def network_of(kind: Kind) -> nn.Module:
    torch.manual_seed(0)
    return alive(kind[0]())


@torch.no_grad()
def test_an_adapter_counts_saves_loads_and_fuses(kind: Kind, tmp_path: Path) -> None:
    _, run, targets = kind
    plain = run(network_of(kind))
    network: Any = network_of(kind)
    convolutions = [name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)]
    network.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=targets or convolutions))
    torch.testing.assert_close(run(network), plain, **CLOSE)  # a new adapter changes nothing
    for name, item in network.named_parameters():
        if "lora_B" in name:
            item.copy_(randn(*item.shape, seed=len(name)) * 0.1)
    adapted = run(network)
    assert (adapted - plain).abs().max() > 1e-3
    network.save_lora_adapter(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    assert all("lora" in name for name in load_file(file))

    other: Any = network_of(kind)
    other.load_lora_adapter(tmp_path, prefix=None)
    assert torch.equal(run(other), adapted)
    other.fuse_lora()
    torch.testing.assert_close(run(other), adapted, **CLOSE)
    other.unfuse_lora()
    torch.testing.assert_close(run(other), adapted, **CLOSE)
    other.disable_adapters()
    torch.testing.assert_close(run(other), plain, **CLOSE)
    other.unload_lora()
    torch.testing.assert_close(run(other), plain, **CLOSE)
    assert other.state_dict().keys() == network_of(kind).state_dict().keys()


def test_only_the_adapter_is_trained() -> None:
    network: Any = unet()
    add_trained_adapter(network, LoraOptions(rank=2, alpha=2.0))
    trained = [name for name, item in network.named_parameters() if item.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    assert any("temporal_attention.to_q" in name for name in trained)
    run_unet(network).square().mean().backward()
    assert all(item.grad is not None for name, item in network.named_parameters() if "lora_B" in name)


def test_bad_adapters_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"lora.targets \['to_z'\]: .*not found"):
        add_trained_adapter(unet(), LoraOptions(targets=("to_z",)))
    with pytest.raises(UserError, match=r"lora\.rank must be at least 1"):
        add_trained_adapter(unet(), LoraOptions(rank=0))
    with pytest.raises(UserError, match="Linear takes no LoRA"):
        add_trained_adapter(nn.Linear(2, 2), LoraOptions())


# Of Stable Diffusion's community

LAYERS = {
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": (16, 16),
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k": (16, TEXT),
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0": (16, 16),
    "mid_block.attentions.0.proj_in": (16, 16, 1, 1),
    "mid_block.attentions.0.transformer_blocks.0.ff.net.2": (16, 64),
    "up_blocks.0.resnets.0.conv1": (16, 32, 3, 3),
}
TEXT_LAYERS = [f"text_model.encoder.layers.0.self_attn.{name}_proj" for name in ("q", "k", "v", "out")]
RANK, ALPHA = 2, 1.0


def halves(shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """(down, up) of a layer with a weight of this shape."""
    down = randn(RANK, *shape[1:], seed=seed) * 0.5
    return down, randn(shape[0], RANK, *[1] * (len(shape) - 2), seed=seed + 1) * 0.5


def product(down: Tensor, up: Tensor) -> Tensor:
    """What a LoRA adds to the weight, scaled by alpha / rank."""
    return ALPHA / RANK * torch.einsum("or,ri...->oi...", up.flatten(1), down)


def kohya() -> dict[str, Tensor]:
    made = {}
    layers = {f"lora_unet_{name.replace('.', '_')}": shape for name, shape in LAYERS.items()}
    layers |= {f"lora_te_{name.replace('.', '_')}": (TEXT, TEXT) for name in TEXT_LAYERS}
    for seed, (name, shape) in enumerate(layers.items()):
        down, up = halves(shape, seed)
        made |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(ALPHA)}
    return made


def peft() -> dict[str, Tensor]:
    """diffusers' present layout; it has no alpha: it is its rank."""
    made = {}
    layers = {f"unet.{name}": shape for name, shape in LAYERS.items()}
    layers |= {f"text_encoder.{name}": (TEXT, TEXT) for name in TEXT_LAYERS}
    for seed, (name, shape) in enumerate(layers.items()):
        down, up = halves(shape, seed)
        made |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up * ALPHA / RANK}
    return made


def latents(pipe: VideoGenPipeline) -> Tensor:
    options: dict[str, Any] = {"num_frames": 2, "temporal_factor": 1, "num_inference_steps": 1, "output_type": "latent"}
    return pipe("a red ball", generator=generators(0), **options).frames


def having(pipe: VideoGenPipeline, **parts: nn.Module) -> VideoGenPipeline:
    """Another pipeline, with these parts in place of its own."""
    options = {key: pipe.config[key] for key in MINI_SAMPLING}
    return VideoGenPipeline(**{**pipe.components, **parts}, **options)


@pytest.fixture
def pipe(tiny_folder: Path) -> VideoGenPipeline:
    return VideoGenPipeline.from_pretrained(tiny_folder)


@pytest.mark.parametrize("layout", [kohya, peft])
def test_a_community_lora_loads_into_text_encoder_image_network_and_base(
    pipe: VideoGenPipeline, layout: Callable[[], dict[str, Tensor]], tmp_path: Path
) -> None:
    """It does what adding its products to the weights by hand does."""
    plain = latents(pipe)
    by_hand = copy.deepcopy({name: getattr(pipe, name) for name in ("text_encoder", "unet", "base")})
    with torch.no_grad():
        for seed, (name, shape) in enumerate(LAYERS.items()):
            for network in ("unet", "base"):
                by_hand[network].get_submodule(name).weight += product(*halves(shape, seed))
        for seed, name in enumerate(TEXT_LAYERS, start=len(LAYERS)):
            layer = by_hand["text_encoder"].get_submodule(name.removeprefix("text_model."))
            layer.weight += product(*halves((TEXT, TEXT), seed))
    expected = latents(having(pipe, **by_hand))
    save_file(layout(), tmp_path / "style.safetensors")
    pipe.load_lora_weights(tmp_path / "style.safetensors", adapter_name="style")
    assert pipe.get_list_adapters() == {name: ["style"] for name in ("text_encoder", "unet", "base")}
    found = latents(pipe)
    assert (found - plain).abs().max() > 1e-2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    pipe.fuse_lora()
    torch.testing.assert_close(latents(pipe), expected, rtol=0, atol=1e-3)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    torch.testing.assert_close(latents(pipe), plain, rtol=0, atol=1e-3)


def test_an_adapter_of_our_own_loads_into_its_network(pipe: VideoGenPipeline, tmp_path: Path) -> None:
    network: Any = copy.deepcopy(pipe.super_resolution_1)
    add_trained_adapter(network, LoraOptions(rank=2))
    with torch.no_grad():
        for name, item in network.named_parameters():
            if "lora_B" in name:
                item.fill_(0.1)
    network.save_lora_adapter(tmp_path)
    expected = latents(having(pipe, super_resolution_1=network))
    plain = latents(pipe)
    pipe.load_lora_weights(tmp_path, component="super_resolution_1")
    assert torch.equal(latents(pipe), expected)
    assert not torch.equal(expected, plain)


def test_what_does_not_fit_is_refused_and_leaves_nothing(pipe: VideoGenPipeline, tmp_path: Path) -> None:
    names = [*pipe.base.state_dict()]
    wide = {**peft(), "unet.mid_block.attentions.0.proj_in.lora_A.weight": torch.zeros(RANK, 9, 1, 1)}
    xl = {"lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight": torch.zeros(2, 4)}
    xl["lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_up.weight"] = torch.zeros(4, 2)
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 40)
    (tmp_path / "pickle.bin").write_bytes(b"never to be opened")
    for source, told in (
        (wide, "cannot load the LoRA"),
        (xl, "cannot load the LoRA"),
        ({"base.weight": torch.zeros(2)}, "no LoRA of Stable Diffusion"),
        ({}, "empty"),
        (tmp_path / "cut.safetensors", "cut.safetensors"),
        (tmp_path / "pickle.bin", "pickle.bin"),
        (tmp_path / "missing.safetensors", "missing.safetensors"),
    ):
        with pytest.raises(UserError, match=told) as refused:
            pipe.load_lora_weights(source)
        assert "\n" not in str(refused.value)
        assert not any(pipe.get_list_adapters().values())
    with pytest.raises(UserError, match="component must be one of text_encoder, unet, base"):
        pipe.load_lora_weights(peft(), component="bass")
    pipe.load_lora_weights(peft(), adapter_name="style")
    with pytest.raises(UserError, match="there is an adapter 'style' already"):
        pipe.load_lora_weights(peft(), adapter_name="style")
    pipe.unload_lora_weights()
    assert [*pipe.base.state_dict()] == names
