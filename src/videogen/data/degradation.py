"""Degraded clips for the video decoder's training (section 3.4), after BSRGAN (Zhang et al. 2021, arXiv 2103.14006).

Blur, resampling, noise and compression in shuffled order, JPEG last. Every frame of a clip suffers the same kinds with the
same parameters, as frames of one file do; only the noise itself is new in each. The ranges are BSRGAN's for its scale 4.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

ISOTROPIC_SIGMA = (0.1, 2.8)  # pixels
ANISOTROPIC_VARIANCE = (0.5, 8.0)  # square pixels, along each axis
KERNEL_SIZES = (7, 21)  # odd
DOWNSCALE = (1.0, 4.0)
NOISE_SIGMA = (1 / 255, 25 / 255)  # of frames in [0, 1]
JPEG_QUALITY = (95, 30)
JPEG_IN_SHUFFLE = 0.75  # probability of a compression before the last one


@torch.no_grad()
def degrade(frames: Tensor, generator: torch.Generator, strength: float) -> Tensor:
    """A degraded copy of one clip: (F, 3, H, W) in [-1, 1], of the same device and type.

    generator: on the CPU; the only source of randomness. strength: 0 leaves the frames as they are, 1 draws from the
    published ranges, between them the far end of every range moves in. Raises ValueError if it is not within 0 .. 1.
    """
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"the degradation's strength must lie in 0 .. 1, not {strength}")
    if strength == 0.0:
        return frames.clone()

    def draw(mild: float, strong: float) -> float:
        return mild + (strong - mild) * strength * float(torch.rand((), generator=generator))

    steps: list[Callable[[Tensor], Tensor]] = [
        lambda x: _blur(x, _gaussian(_kernel_size(generator), *_isotropic(draw))),
        lambda x: _blur(x, _gaussian(_kernel_size(generator), *_anisotropic(draw, generator))),
        lambda x: _resample(x, draw(*DOWNSCALE), generator),
        lambda x: _noise(x, draw(*NOISE_SIGMA), generator),
    ]
    if float(torch.rand((), generator=generator)) < JPEG_IN_SHUFFLE * strength:
        steps.append(lambda x: _jpeg(x, draw(*JPEG_QUALITY)))
    order = torch.randperm(len(steps), generator=generator).tolist()
    x = frames.detach().float().add(1).div(2)  # [0, 1]
    for index in order:
        x = steps[index](x).clamp(0, 1)
    return _jpeg(x, draw(*JPEG_QUALITY)).mul(2).sub(1).to(frames.dtype)


def _integer(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (), generator=generator))


def _kernel_size(generator: torch.Generator) -> int:
    smallest, largest = KERNEL_SIZES
    return smallest + 2 * _integer((largest - smallest) // 2 + 1, generator)


def _isotropic(draw: Callable[[float, float], float]) -> tuple[float, float, float]:
    variance = draw(*ISOTROPIC_SIGMA) ** 2
    return variance, variance, 0.0


def _anisotropic(draw: Callable[[float, float], float], generator: torch.Generator) -> tuple[float, float, float]:
    return draw(*ANISOTROPIC_VARIANCE), draw(*ANISOTROPIC_VARIANCE), math.pi * float(torch.rand((), generator=generator))


def _gaussian(size: int, variance_x: float, variance_y: float, angle: float) -> Tensor:
    """(size, size) kernel of sum 1 whose axes are turned by `angle` (radians)."""
    axis = torch.arange(size, dtype=torch.float32) - size // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    kernel = torch.exp(-0.5 * (along**2 / variance_x + across**2 / variance_y))
    return kernel / kernel.sum()


def _blur(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolution in the frequency domain: on a CPU 7 times as fast as conv2d with these kernels and one channel."""
    margin = kernel.shape[-1] // 2
    padded = F.pad(x, [margin] * 4, mode="replicate")
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernel.to(x.device), s=padded.shape[-2:])
    return torch.fft.irfft2(spectrum, s=padded.shape[-2:])[..., 2 * margin :, 2 * margin :]


def _resample(x: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    """Down by `factor` and up again, each with an interpolation of its own."""
    down, up = ("area", "bilinear", "bicubic")[_integer(3, generator)], ("bilinear", "bicubic")[_integer(2, generator)]
    height, width = x.shape[-2:]
    small = F.interpolate(x, (max(1, round(height / factor)), max(1, round(width / factor))), mode=down)
    return F.interpolate(small, (height, width), mode=up)


def _noise(x: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise whose channels are correlated at random (probability 0.4), independent (0.4) or equal (0.2)."""
    kind = float(torch.rand((), generator=generator))
    noise = torch.randn(x.shape, generator=generator)
    if kind < 0.4:
        basis, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator))
        mixing = basis * torch.rand(3, generator=generator).sqrt()  # covariance: basis diag(rand) basis^T
        noise = torch.einsum("cd,fdhw->fchw", mixing, noise)
    elif kind >= 0.8:
        noise = noise[:, :1].expand_as(x)
    return x + sigma * noise.to(x.device)


def _jpeg(x: Tensor, quality: float) -> Tensor:
    pixels = x.clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    decoded = np.stack([_recompress(frame, round(quality)) for frame in pixels])
    return torch.from_numpy(decoded).to(x.device).permute(0, 3, 1, 2).float().div(255).contiguous()


def _recompress(frame: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, format="JPEG", quality=quality)
    with Image.open(file, formats=["JPEG"]) as image:
        return np.asarray(image.convert("RGB"))
