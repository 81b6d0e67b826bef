"""LPIPS, the perceptual part of the autoencoder's and the video decoder's loss (section 3.4: losses as Stable Diffusion's).

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, arXiv 1801.03924: version 0.1
with VGG-16. Sub-modules carry the names of torchvision's VGG-16 and of the published heads, so both load by their own names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from videogen.config import UserError

WIDTHS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # VGG-16 up to relu5_3: channels and convolutions of each stage
FILES = {"features.": "vgg16.safetensors", "lin": "lpips.safetensors"}
"""Beginning of a tensor's name -> the file it comes from."""


class LPIPS(nn.Module):
    """Perceptual distance of images: a weighted squared distance of unit-length VGG-16 features (its paper's equation 1).

    Frozen: gradients flow through it to the images only. `load_lpips` builds it with its weights.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False)
        self.register_buffer("spread", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)
        layers: list[nn.Module] = []
        channels = 3
        for index, (width, convolutions) in enumerate(WIDTHS):
            for _ in range(convolutions):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
            self.add_module(f"lin{index}", Head(width))
        self.features = nn.Sequential(*layers[:-1])
        self.requires_grad_(False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1], sides of at least 16 pixels -> distances (N,), float32, 0 for equal images."""
        x = (torch.cat([first, second]) - self.mean) / self.spread
        features = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                features.append(x)
            x = layer(x)
        distance = torch.zeros(len(first), device=first.device)
        for index, stage in enumerate([*features, x]):
            a, b = unit_length(stage.float()).chunk(2)
            distance = distance + cast(Head, self.get_submodule(f"lin{index}"))((a - b).square())
        return distance


class Head(nn.Module):
    """The learnt weights of one stage's channels: squared differences (N, C, h, w) -> weighted sum, mean over places (N,).

    `model.0` is dropout where LPIPS is trained, and nothing here.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.model(x)).float().mean((1, 2, 3))


def unit_length(features: Tensor) -> Tensor:
    """Features (N, C, h, w) with length 1 at each place; where all are zero they stay so, and the gradient is finite."""
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10)


def load_lpips(folder: str | Path) -> LPIPS:
    """LPIPS from a folder with `vgg16.safetensors` and `lpips.safetensors`.

    The published files are pickles, which this project does not read. With a torch that you trust them to, outside of this
    project, torchvision's `vgg16-397923af.pth` and LPIPS's `weights/v0.1/vgg.pth` become the two files by

        python -c "import torch, safetensors.torch as s; [s.save_file({k: v.contiguous() for k, v in torch.load(a, \
    weights_only=True, map_location='cpu').items() if k.startswith(('features.', 'lin'))}, b) for a, b in \
    [('vgg16-397923af.pth', 'vgg16.safetensors'), ('vgg.pth', 'lpips.safetensors')]]"

    Raises UserError, naming file and tensor, where a file is missing or a tensor is missing, unknown, of another shape or not
    finite.
    """
    network = LPIPS()
    own = network.state_dict()
    for beginning, name in FILES.items():
        wanted = {key: tensor for key, tensor in own.items() if key.startswith(beginning)}
        _copy(_read(Path(folder) / name), wanted, Path(folder) / name)
    return network


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read LPIPS weights from {path}: {error}; models/lpips.py says how to make them") from None


def _copy(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    if odd := sorted(found.keys() ^ wanted.keys()):
        fault = "lacks" if odd[0] in wanted else "has the unknown tensor"
        raise UserError(f"{path} {fault} {odd[0]}; models/lpips.py says how to make the file")
    for key, tensor in wanted.items():
        if found[key].shape != tensor.shape:
            raise UserError(f"{path}: {key} is {tuple(found[key].shape)}, expected {tuple(tensor.shape)}")
        if not torch.isfinite(found[key]).all():
            raise UserError(f"{path}: {key} holds values that are not finite numbers")
        tensor.copy_(found[key])
