"""The feature networks of section 4.1 from their public weight files: I3D for FVD, C3D for IS, CLIP for CLIPSIM.

Weights come by path (CLIP also by hub id), are safetensors or plain arrays, never pickles, and are identified by the SHA-256
of the file: names like "i3d" hide the differences that make published numbers disagree. docs/evaluation.md says what to
download from where.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import huggingface_hub
import numpy as np
import torch
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from videogen.config import UserError
from videogen.evaluation.feature_networks import C3D, I3D
from videogen.files import decoding, open_regular, reason
from videogen.models.pretrained import quiet

__all__ = [
    "C3D", "I3D", "KNOWN", "Clip", "FeatureSource", "VideoNetwork", "load_c3d", "load_clip", "load_i3d",
    "video_features",
]  # fmt: skip

KNOWN: Mapping[str, str] = {
    "99d28a652e6ec46629ab7047a0ac82c69b1fe11e0ce672c43af65d3a9a3fc05d": "OpenAI CLIP ViT-B/32, model.safetensors of "
    "openai/clip-vit-base-patch32@refs/pr/15",
    "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb": "OpenAI CLIP ViT-L/14, model.safetensors of "
    "openai/clip-vit-large-patch14",
}
"""SHA-256 of a weights file -> what it is, as many public projects pin it. No digest of a file that holds I3D or C3D is
published that we could find, so those work and are marked unverified: keep the digest that the result names."""

CONVERT = (
    'convert it once, where you trust it: python -c "import sys, torch, safetensors.torch as s; '
    "d = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
    's.save_file({k: v.contiguous() for k, v in d.items()}, sys.argv[2])" in.pt out.safetensors; '
    "a TorchScript file needs d = torch.jit.load(sys.argv[1], map_location='cpu').state_dict()"
)
VIT_B_32 = "openai/clip-vit-base-patch32@refs/pr/15"
MAX_BYTES = 1 << 30  # of the arrays of an .npz: C3D has 0.3 GB


@dataclass(frozen=True)
class FeatureSource:
    """Which weights. name: the network; path: where they came from; sha256: of their file; verified: it is in KNOWN;
    in_domain: they learnt on Diorama, and what they measure is never comparable with the paper's."""

    name: str
    path: str
    sha256: str
    verified: bool
    in_domain: bool = False


class VideoNetwork(Protocol):
    """I3D, C3D, or an in-domain one. resize: how frames come to it, for the fingerprint; dimensions: of its output."""

    resize: str
    dimensions: int

    def prepare(self, frames: Tensor) -> Tensor:
        """Frames uint8 (F, H, W, 3) of any size -> what it takes of one video."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def __call__(self, videos: Tensor) -> Tensor:
        """N videos as prepared -> (N, dimensions)."""
        ...


class Clip(nn.Module):
    """CLIP's two towers up to the space that they share, with their preprocessing."""

    MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's models
    STD = (0.26862954, 0.26130258, 0.27577711)
    resize = "CLIP: shorter side by PIL bicubic, centre crop"

    def __init__(self, model: CLIPModel, tokenizer: Any) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.side = int(model.config.vision_config.image_size)

    @torch.inference_mode()
    def images(self, frames: np.ndarray) -> np.ndarray:
        """Frames uint8 (N, H, W, 3) of any size -> features (N, D), float64, not scaled."""
        pixels = torch.from_numpy(np.stack([self._crop(frame) for frame in frames])).float().permute(0, 3, 1, 2) / 255
        pixels = (pixels - torch.tensor(self.MEAN)[:, None, None]) / torch.tensor(self.STD)[:, None, None]
        pooled = self.model.vision_model(pixel_values=pixels.to(self.model.device)).pooler_output
        return np.asarray(self.model.visual_projection(pooled).double().cpu())

    def _crop(self, frame: np.ndarray) -> np.ndarray:
        """As OpenAI's preprocessing: the shorter side to `side`, then the centre. uint8 (side, side, 3)."""
        height, width = frame.shape[:2]
        size = (self.side * width // min(height, width), self.side * height // min(height, width))
        image = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))
        top, left = (image.shape[0] - self.side) // 2, (image.shape[1] - self.side) // 2
        return image[top : top + self.side, left : left + self.side]

    @torch.inference_mode()
    def texts(self, prompts: Sequence[str]) -> np.ndarray:
        """Prompts -> features (N, D), float64, not scaled. Longer than the model's context (77 tokens): cut."""
        tokens = self.tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt").to(self.model.device)
        pooled = self.model.text_model(**tokens).pooler_output
        return np.asarray(self.model.text_projection(pooled).double().cpu())


@torch.inference_mode()
def video_features(network: VideoNetwork, videos: Sequence[np.ndarray]) -> np.ndarray:
    """Videos uint8 (F, H, W, 3) of one length, each resized as the network asks -> features (N, D), float64.

    The network runs in float32 where it lies; a video's features do not depend on its batch but for the last bits. Raises
    UserError where the network needs more frames.
    """
    device = next(network.parameters()).device
    batch = torch.stack([network.prepare(torch.from_numpy(frames).to(device)) for frames in videos])
    return np.asarray(network(batch).double().cpu())


def load_i3d(path: str | Path) -> tuple[I3D, FeatureSource]:
    """I3D from safetensors, in one of the two public layouts of its tensors; see `I3D`. Raises UserError."""
    network = I3D()
    _fill(network, _read(path), _i3d_name, path)
    return network, identify("i3d-kinetics400-logits", path)


def load_c3d(path: str | Path) -> tuple[C3D, FeatureSource]:
    """C3D from safetensors with a tensor `mean`, or from TGAN v2's own `conv3d_deepnetA_ucf.npz` with `mean2.npz` beside it.

    The arrays of an .npz are read without pickle. Raises UserError.
    """
    path = Path(path)
    parts = [path]
    if path.suffix == ".npz":
        parts.append(path.with_name("mean2.npz"))
        found = _read_npz(path) | {"mean": crop_mean(_read_npz(parts[1]).get("mean"), parts[1])}
    else:
        found = _read(path)
    network = C3D()
    _fill(network, found, _c3d_name, path)
    return network, identify("c3d-ucf101", *parts)


def load_clip(model: str | Path) -> tuple[Clip, FeatureSource]:
    """CLIP from a folder in transformers' layout, or a hub id (downloaded), with "@revision" or without. Raises UserError."""
    folder = Path(model)
    if not folder.is_dir():
        name, _, revision = str(model).partition("@")
        try:
            patterns = ["*.json", "*.txt", "model.safetensors"]
            folder = Path(huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=patterns))
        except (OSError, ValueError, HfHubHTTPError) as error:
            raise UserError(f"{model} is neither a folder nor a hub id that can be reached: {reason(error)}") from None
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"{model} has no model.safetensors, and pickled weights are not read; ViT-B/32 has one at {VIT_B_32}")
    if not (folder / "config.json").is_file():
        raise UserError(f"{model} has no config.json: it is not CLIP in transformers' layout")
    source = identify("clip", weights)
    try:
        with quiet():
            network, info = CLIPModel.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True
            )
            tokenizer = CLIPTokenizer.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError, SafetensorError, KeyError, TypeError) as error:
        raise UserError(f"cannot load CLIP from {model}: {reason(error)}") from None
    kinds = ("missing_keys", "mismatched_keys", "unexpected_keys")  # mismatched: (name, shape, shape)
    odd = {key if isinstance(key, str) else str(key[0]) for kind in kinds for key in info.get(kind) or ()}
    if wrong := sorted(key for key in odd if "position_ids" not in key):  # older files hold these constants
        raise UserError(f"{model} does not hold a whole CLIPModel: {', '.join(wrong[:3])}")
    if len(tokenizer) < 100:
        raise UserError(f"the tokenizer of {model} knows only {len(tokenizer)} tokens: its vocabulary file is missing")
    _check_finite(network, model)
    return Clip(network, tokenizer).requires_grad_(False).eval(), replace(source, path=str(model))


def identify(name: str, path: str | Path, *more: str | Path, in_domain: bool = False) -> FeatureSource:
    """The identity of weights: the SHA-256 of their file, or of several one after the other. Raises UserError."""
    state = hashlib.sha256()
    for part in (path, *more):
        with open_regular(part) as file:
            while block := file.read(1 << 20):
                state.update(block)
    digest = state.hexdigest()
    return FeatureSource(name, str(path), digest, digest in KNOWN, in_domain)


def _read(path: str | Path) -> dict[str, Tensor]:
    with open_regular(path) as file:
        start = file.read(2)
    if start in (b"PK", b"\x80\x02", b"\x80\x04"):  # zip: TorchScript and torch.save; pickle
        raise UserError(f"{path} is a pickle, which may run code and is not read: {CONVERT}")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read weights from {path}: {reason(error)}") from None


def _read_npz(path: Path) -> dict[str, Tensor]:
    with open_regular(path) as file, decoding(path, "an .npz of arrays"):
        try:
            with zipfile.ZipFile(file) as archive:
                if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:
                    raise UserError(f"{path} is larger than C3D's weights can be")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(np.array(arrays[name], np.float32)) for name in arrays.files}
        except zipfile.BadZipFile as error:
            raise UserError(f"{path} is not an .npz of arrays ({reason(error)})") from None


def crop_mean(mean: Tensor | None, path: str | Path) -> Tensor:
    """Sports-1M's mean clip (3, 16, 128, 171), BGR 0..255 -> (3, 16, 112, 112), cut where TGAN v2 cuts it. Raises UserError."""
    if mean is None or mean.shape != (3, 16, 128, 171):
        found = "has no array `mean`" if mean is None else f"has a mean of {tuple(mean.shape)}"
        raise UserError(f"{path} {found}; expected (3, 16, 128, 171)")
    return mean[:, :, 8:120, 8:120].contiguous()


def _fill(network: nn.Module, found: Mapping[str, Tensor], rename: Callable[[str], str], path: str | Path) -> None:
    """Copy the tensors of a file into the network, each under its own name. Raises UserError, naming what does not fit."""
    wanted = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    given = {rename(key): value for key, value in found.items() if not key.endswith("num_batches_tracked")}
    if odd := sorted(given.keys() ^ wanted.keys()):
        missing, unknown = [key for key in odd if key in wanted], [key for key in odd if key in given]
        parts = [f"{what} {', '.join(keys[:3])}" for what, keys in (("lacks", missing), ("has the unknown", unknown)) if keys]
        raise UserError(f"{path} is not laid out as {type(network).__name__}'s weights: it {' and '.join(parts)}")
    for key, value in wanted.items():
        if given[key].shape != value.shape:
            raise UserError(f"{path}: {key} is {tuple(given[key].shape)}, expected {tuple(value.shape)}")
        value.copy_(given[key])
    _check_finite(network, path)
    network.requires_grad_(False).eval()


def _check_finite(network: nn.Module, path: str | Path) -> None:
    for name, value in network.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"{path}: {name} holds values that are not finite numbers")


_HASSON = (  # hassony2/kinetics_i3d_pytorch (and the TorchScript of StyleGAN-V made from it) -> piergiaj/pytorch-i3d
    (r"^conv3d_0c_1x1\.", "logits."),
    (r"^conv3d_", "Conv3d_"),
    (r"^mixed_", "Mixed_"),
    (r"\.branch_0\.", ".b0."),
    (r"\.branch_([12])\.0\.", r".b\1a."),
    (r"\.branch_([123])\.1\.", r".b\1b."),
    (r"\.batch3d\.", ".bn."),
)


def _i3d_name(name: str) -> str:
    for pattern, replacement in _HASSON:
        name = re.sub(pattern, replacement, name)
    return name


def _c3d_name(name: str) -> str:
    """Chainer's `conv1a/W` and c3d-pytorch's `conv1.weight` -> `conv1a.weight`."""
    name = name.replace("/W", ".weight").replace("/b", ".bias")
    return re.sub(r"^conv([12])\.", r"conv\1a.", name)
