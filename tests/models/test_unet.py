"""VideoUNet (section 3.2): what it equals before training, what reaches what, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from tiny import NO_TEXT, UNET, alive, randn
from videogen.models.initialization import initialize_from
from videogen.models.pretrained import load_network
from videogen.models.pseudo3d import PseudoConv3d, TemporalAttention
from videogen.models.unet import TextCondition, VideoUNet

LIKE_SD_1: dict[str, Any] = {  # convolutions around the transformers, 8 heads at every level; fewer here
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (8, 16, 32),
    "layers_per_block": 2,
    "attention_head_dim": 4,
    "cross_attention_dim": 12,
    "norm_num_groups": 4,
}
LIKE_SD_2 = {**LIKE_SD_1, "use_linear_projection": True, "attention_head_dim": (1, 2, 4)}  # heads by level
ARCHITECTURES = {"like SD 1": LIKE_SD_1, "like SD 2": LIKE_SD_2, "like mini": UNET}
B, T = 2, 3  # videos, frames


def pair(arguments: dict[str, Any], **video: Any) -> tuple[UNet2DConditionModel, VideoUNet]:
    """An image network with random weights, and the video network that starts from it."""
    torch.manual_seed(0)
    image = alive(UNet2DConditionModel(**arguments))
    network = VideoUNet(**arguments, **video).eval()
    initialize_from(network, image.state_dict())
    return image, network


def inputs(text: int = 12, size: int = 8, frames: int = T) -> dict[str, Tensor]:
    return {
        "sample": randn(B, frames, 4, size, size),
        "timestep": torch.tensor([500, 20]),
        "fps": torch.tensor([4.0, 8.0]),
        "text": randn(B, 5, text, seed=1),
    }


@pytest.fixture(scope="module")
def fresh() -> VideoUNet:
    """A network as training starts it, with a condition and a reference. Not to be changed."""
    return pair(UNET, condition_channels=4)[1]


@pytest.fixture(scope="module")
def trained() -> VideoUNet:
    torch.manual_seed(0)
    return alive(VideoUNet(condition_channels=4, **UNET))


def everything(size: int = 8) -> dict[str, Tensor]:
    return {
        **inputs(text=UNET["cross_attention_dim"], size=size),
        "reference": randn(B, 4, size, size, seed=2),
        "condition": randn(B, T, 4, size // 2, size // 2, seed=3),
    }


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("size", [8, 6, 5])
def test_it_starts_as_the_image_network_frame_by_frame(name: str, size: int) -> None:
    """Tolerance: a few float32 roundings of outputs of size 1, since convolutions may pick another algorithm for a batch."""
    image, network = pair(ARCHITECTURES[name])
    given = inputs(ARCHITECTURES[name]["cross_attention_dim"], size)
    with torch.no_grad():
        video = network(**given, reference=randn(B, 4, size, size, seed=2))
        frames = [image(given["sample"][:, i], given["timestep"], given["text"]).sample for i in range(T)]
    torch.testing.assert_close(video, torch.stack(frames, dim=1), rtol=0, atol=1e-5)


def test_it_starts_as_an_image_network_without_text() -> None:
    """diffusers' image network always reads a text, so this one is compared with itself frame by frame."""
    network = VideoUNet(**NO_TEXT).eval()
    given = inputs()
    del given["text"]
    whole = network(**given)
    for i in range(T):
        alone = network(**{**given, "sample": given["sample"][:, i : i + 1]})
        torch.testing.assert_close(whole[:, i : i + 1], alone, rtol=0, atol=1e-5)


def changed(network: VideoUNet, given: dict[str, Tensor], **other: Tensor) -> list[bool]:
    """For each frame, whether the output changes when `other` takes the place of inputs."""
    with torch.no_grad():
        difference = (network(**{**given, **other}) - network(**given)).abs().amax(dim=(0, 2, 3, 4))
    return [value > 1e-5 for value in difference.tolist()]


def other_last_frame(sample: Tensor) -> Tensor:
    return torch.cat([sample[:, :-1], sample[:, -1:] + 1], dim=1)


def test_nothing_leaks_between_frames_at_the_start(fresh: VideoUNet) -> None:
    given = everything()
    assert changed(fresh, given, sample=other_last_frame(given["sample"])) == [False, False, True]
    assert changed(fresh, given, condition=other_last_frame(given["condition"])) == [False] * 3  # zero input weights


def bend_convolution(network: nn.Module) -> None:
    layer = next(layer for layer in network.modules() if isinstance(layer, PseudoConv3d))
    layer.temporal.weight[:, :, 2] += 0.1  # the tap on the next frame


def bend_attention(network: nn.Module) -> None:
    layer = next(layer for layer in network.modules() if isinstance(layer, TemporalAttention))
    layer.to_out[0].weight += 1.0 * torch.eye(len(layer.to_out[0].weight))


@pytest.mark.parametrize(
    ("bend", "reached"),
    [(bend_convolution, [False, True, True]), (bend_attention, [True, True, True])],
)
@torch.no_grad()
def test_frames_see_each_other_once_a_temporal_weight_moves(bend: Callable[[nn.Module], None], reached: list[bool]) -> None:
    """One convolution reaches one frame further, attention all of them."""
    network, given = pair(UNET)[1], inputs(text=UNET["cross_attention_dim"])
    bend(network)
    assert changed(network, given, sample=other_last_frame(given["sample"])) == reached


def test_videos_of_a_batch_never_see_each_other(trained: VideoUNet) -> None:
    """Tolerance as above: another batch size may mean another algorithm."""
    given = everything()
    whole = trained(**given)
    alone = [trained(**{name: value[i : i + 1] for name, value in given.items()}) for i in range(B)]
    torch.testing.assert_close(whole, torch.cat(alone), rtol=0, atol=1e-5)


def test_the_reference_enters_with_the_first_frame_only() -> None:
    network, given = pair(UNET)[1], inputs(text=UNET["cross_attention_dim"])
    reference = randn(B, 4, 8, 8, seed=2)
    assert changed(network, given, reference=reference) == [False] * 3  # its input weights start at zero
    with torch.no_grad():
        network.conv_in.weight[:, 4:] += 0.1
    assert changed(network, given, reference=reference) == [True, False, False]


@torch.no_grad()
def test_a_reference_in_every_frame_is_seen_there_once_it_is_learnt() -> None:
    given, reference = inputs(text=UNET["cross_attention_dim"]), randn(B, 4, 8, 8, seed=2)
    first_only = pair(UNET)[1]
    first_only.conv_in.weight[:, 4:] += 0.1
    network = VideoUNet(**UNET, reference_in_every_frame=True).eval()
    assert initialize_from(network, first_only.state_dict()).widened == ("conv_in.weight",)
    torch.testing.assert_close(network(**given, reference=reference), first_only(**given, reference=reference))
    network.conv_in.weight[:, 8:] += 0.1
    assert changed(network, given, reference=reference) == [True] * 3
    assert torch.equal(network(**given), network(**given, reference=torch.zeros_like(reference)))


def test_no_reference_is_a_reference_of_zeros(trained: VideoUNet) -> None:
    given = everything()
    zeros, none = torch.zeros_like(given.pop("reference")), None
    assert torch.equal(trained(**given, reference=zeros), trained(**given, reference=none))


def test_the_condition_is_enlarged_bilinearly_and_reaches_every_frame(trained: VideoUNet) -> None:
    given = everything()
    large = F.interpolate(given["condition"].flatten(0, 1), size=(8, 8), mode="bilinear").unflatten(0, (B, T))
    assert torch.equal(trained(**given), trained(**{**given, "condition": large}))
    assert changed(trained, given, condition=given["condition"] + 1) == [True] * 3


def test_a_text_may_be_read_beforehand(trained: VideoUNet) -> None:
    given = everything()
    read = trained.read_text(given["text"])
    assert len(read.keys_values) == 1 + 1 + 2  # transformers going down, in the middle, going up
    assert read.keys_values[0][0].shape == (B, 2, 5, 8)  # (B, heads, L, head size)
    assert read.embedding is not None
    assert torch.equal(trained(**given), trained(**{**given, "text": read}))
    second = {name: item[1:] for name, item in given.items()}
    torch.testing.assert_close(trained(**second), trained(**{**second, "text": read.rows(slice(1, None))}), rtol=0, atol=1e-5)
    assert changed(trained, given, text=given["text"] + 1) == [True] * 3


def test_the_embedding_of_the_whole_text_counts_beside_cross_attention(trained: VideoUNet) -> None:
    given = everything()
    read = trained.read_text(given["text"])
    other = trained.read_text(randn(*given["text"].shape, seed=9))
    assert changed(trained, {**given, "text": read}, text=TextCondition(read.keys_values, other.embedding)) == [True] * 3  # type: ignore[arg-type,dict-item]
    assert changed(trained, {**given, "text": read}, text=TextCondition(other.keys_values, read.embedding)) == [True] * 3  # type: ignore[arg-type,dict-item]


def test_fps_counts_once_its_layer_moves(fresh: VideoUNet, trained: VideoUNet) -> None:
    given = everything()
    assert changed(fresh, given, fps=given["fps"] + 4) == [False] * 3
    assert changed(trained, given, fps=given["fps"] + 4) == [True] * 3


def test_every_weight_is_trained_after_a_step() -> None:
    """At the start what lies behind a zero gets no gradient; as soon as the zeros have moved, everything does."""
    torch.manual_seed(0)
    network = alive(VideoUNet(condition_channels=4, **UNET))
    network(**everything()).square().mean().backward()
    still = [name for name, item in network.named_parameters() if item.grad is None or not item.grad.abs().max() > 0]
    assert still == []


def test_wrong_use_is_refused(fresh: VideoUNet) -> None:
    given = everything()
    with pytest.raises(ValueError, match="needs text"):
        fresh(**{**given, "text": None})
    with pytest.raises(ValueError, match="takes a condition of 4 channels, not 0"):
        fresh(**{**given, "condition": None})
    with pytest.raises(ValueError, match="takes a condition of 4 channels, not 3"):
        fresh(**{**given, "condition": given["condition"][:, :, :3]})
    with pytest.raises(ValueError, match='must be "text" beside a cross_attention_dim'):
        VideoUNet(**{**UNET, "addition_embed_type": "image"})
    with pytest.raises(ValueError, match='must be "text" beside a cross_attention_dim'):
        VideoUNet(**{**UNET, "cross_attention_dim": None})
    plain = VideoUNet(reference=False, **NO_TEXT)
    bare = {name: given[name] for name in ("sample", "timestep", "fps")}
    with pytest.raises(ValueError, match="one without takes none"):
        plain(**bare, text=given["text"])
    with pytest.raises(ValueError, match="takes a condition of 0 channels, not 4"):
        plain(**bare, condition=given["condition"])
    with pytest.raises(ValueError, match="takes no reference"):
        plain(**bare, reference=given["reference"])
    with pytest.raises(ValueError, match="must have the same length"):
        VideoUNet(block_out_channels=(8, 16))
    with pytest.raises(ValueError, match=r"shared_noise must lie in 0..1, not nan"):
        VideoUNet(**UNET, shared_noise=float("nan"))
    with pytest.raises(ValueError, match="condition_error must be above 0 and finite, of a network with a condition, not 0"):
        VideoUNet(**UNET, condition_channels=4, condition_error=0.0)
    with pytest.raises(ValueError, match=r"condition_error must be above 0 and finite, of a network with a condition, not 0.1"):
        VideoUNet(**UNET, condition_error=0.1)
    with pytest.raises(ValueError, match="reference_in_every_frame needs a network with a reference"):
        VideoUNet(reference=False, reference_in_every_frame=True, **NO_TEXT)
    for blur in (-1, 17, 1.5, True):
        with pytest.raises(ValueError, match=f"condition_blur must be a whole number from 0 to 16, not {blur}"):
            VideoUNet(**UNET, condition_blur=blur)
    for name in ("reference", "reference_in_every_frame"):
        with pytest.raises(ValueError, match=f"{name} must be true or false, not 3"):
            VideoUNet(**{**UNET, name: 3})
    with pytest.raises(ValueError, match="'AttnDownBlock2D' is not"):
        VideoUNet(**{**UNET, "down_block_types": ("AttnDownBlock2D", "DownBlock2D")})


def test_saving_and_loading_changes_no_bit(trained: VideoUNet, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path)
    loaded = load_network(VideoUNet, tmp_path)
    assert loaded.config.condition_channels == 4
    assert torch.equal(loaded(**everything()), trained(**everything()))


def test_it_takes_any_number_of_frames_and_any_size(trained: VideoUNet) -> None:
    for frames, height, width in ((1, 2, 2), (4, 3, 7), (2, 1, 1)):
        given = everything()
        given |= {"sample": randn(B, frames, 4, height, width), "condition": randn(B, frames, 4, 1, 1)}
        given["reference"] = randn(B, 4, height, width)
        assert trained(**given).shape == (B, frames, 4, height, width)


@torch.no_grad()
def test_it_compiles_to_one_graph(trained: VideoUNet) -> None:
    """No Python left between kernels, which is what compiling on a GPU lives on; the graph runs uncompiled here."""
    compiled = torch.compile(trained, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**everything()), trained(**everything()), rtol=0, atol=1e-5)
