"""LoRA (Hu et al. 2022) through peft, for every network and for the pipeline (no section of the paper).

Stable Diffusion's tensors keep their names in the video networks, so its LoRAs fit the base network as well as the image
network. peft is imported where it is needed only: it comes with the extra `train`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from diffusers.loaders import PeftAdapterMixin, StableDiffusionLoraLoaderMixin
from diffusers.utils import is_peft_available
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from torch import Tensor, nn

from videogen.config import LoraOptions, UserError


class NetworkAdapters(PeftAdapterMixin):
    """diffusers' adapter methods (`add_adapter`, `load_lora_adapter`, `save_lora_adapter`, `fuse_lora` ...)."""

    def add_adapter(self, adapter_config: Any, adapter_name: str = "default") -> None:
        """A new adapter, as in diffusers."""
        with _as_convolutions(self):
            super().add_adapter(adapter_config, adapter_name)

    def load_lora_adapter(self, source: Any, prefix: str | None = "transformer", hotswap: bool = False, **options: Any) -> None:
        """An adapter of a folder or of tensors by name, as in diffusers. prefix: of the names that count; None: all."""
        with _as_convolutions(self):
            super().load_lora_adapter(source, prefix=prefix, hotswap=hotswap, **{"use_safetensors": True, **options})

    def save_lora_adapter(self, save_directory: Any, adapter_name: str = "default", **options: Any) -> None:
        """The adapter alone, as safetensors, as in diffusers."""
        for name, item in self.named_parameters():
            if "lora_" in name:
                item.data = item.data.contiguous()  # safetensors takes no channels_last
        super().save_lora_adapter(save_directory, adapter_name, **options)


@contextlib.contextmanager
def _as_convolutions(network: Any) -> Iterator[None]:
    """Let every PseudoConv3d pass for the 2-D convolution that it extends while peft wraps layers.

    An adapter then belongs to its 2-D half, as in the image network: its output is added before the temporal half, so that
    fusing it into the weight is exact.
    """
    from peft.tuners.lora.layer import Conv2d

    from videogen.models.pseudo3d import PseudoConv3d

    inflated: list[nn.Module] = [module for module in network.modules() if isinstance(module, PseudoConv3d)]
    try:
        for module in inflated:
            module.__class__ = nn.Conv2d
        yield
    finally:
        for module in inflated:
            module.__class__ = PseudoConv3d
        for module in network.modules():
            if type(module) is Conv2d and isinstance(module.get_base_layer(), PseudoConv3d):
                module.__class__ = _spatial_lora()


@functools.cache
def _spatial_lora() -> type:
    from peft.tuners.lora.layer import Conv2d

    class SpatialLora(Conv2d):
        """peft's LoRA of a convolution, around the 2-D half of a PseudoConv3d."""

        def forward(self, x: Tensor, num_frames: int | None = 1) -> Tensor:
            x = super().forward(x, None)
            return x if num_frames is None else self.over_time(x, num_frames)

        def over_time(self, x: Tensor, num_frames: int) -> Tensor:
            return self.get_base_layer().over_time(x, num_frames)

    return SpatialLora


def add_trained_adapter(network: nn.Module, options: LoraOptions) -> None:
    """Freeze a network and give it one new adapter to train. Raises UserError."""
    _require_peft()
    from peft import LoraConfig

    if not isinstance(network, PeftAdapterMixin):
        raise UserError(f"{type(network).__name__} takes no LoRA: leave the table [lora] out")
    if options.rank < 1:
        raise UserError(f"lora.rank must be at least 1, not {options.rank}")
    network.requires_grad_(False)
    try:
        network.add_adapter(LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules=list(options.targets)))
    except ValueError as error:
        raise UserError(f"lora.targets {list(options.targets)}: {str(error).splitlines()[0]}") from None


def _require_peft() -> None:
    if not is_peft_available():
        raise UserError('a LoRA needs peft: pip install "reference-videogen[train]"')


class PipelineAdapters(StableDiffusionLoraLoaderMixin):
    """`load_lora_weights`, `set_adapters`, `fuse_lora`, `unload_lora_weights` ... of diffusers, over all our networks."""

    _lora_loadable_modules = [  # noqa: RUF012, diffusers' own
        "text_encoder", "unet", "base", "super_resolution_1", "super_resolution_2", "latent_flow", "refiner", "video_decoder",
    ]  # fmt: skip

    def load_lora_weights(
        self, source: Any, adapter_name: str | None = None, *, component: str | None = None, **options: Any
    ) -> None:
        """Load a LoRA: a folder, a hub id, a safetensors file, or tensors by name.

        Without `component` it is one of Stable Diffusion, in diffusers' or kohya's names: its UNet's part goes into the
        text-to-image network and the base network, its text encoder's part into the text encoder. component: the network that
        a LoRA of our own training belongs to. options: as in diffusers (`weight_name`, `subfolder` ...). Nothing is loaded
        where something does not fit: UserError.
        """
        _require_peft()
        names = {name for part in self.get_list_adapters().values() for name in part}
        name = adapter_name or next(f"default_{i}" for i in range(len(names) + 1) if f"default_{i}" not in names)
        if name in names:
            raise UserError(f"there is an adapter {name!r} already: choose another adapter_name")
        if component is not None and (component not in self._lora_loadable_modules or getattr(self, component) is None):
            parts = ", ".join(self._lora_loadable_modules)
            raise UserError(f"component must be one of {parts} that is there, not {component!r}")
        with _told(source):
            options = {"use_safetensors": True, **options, "return_lora_metadata": True}
            state, alphas, metadata = self.lora_state_dict(source, **options)
        try:
            with _told(source):
                if component is not None:
                    network = getattr(self, component)
                    network.load_lora_adapter(state, prefix=None, adapter_name=name, metadata=metadata, _pipeline=self)
                else:
                    self._load_of_stable_diffusion(state, alphas, metadata, name)
        except UserError:
            for network in self.components.values():
                if name in getattr(network, "peft_config", {}):
                    network.delete_adapters(name) if isinstance(network, PeftAdapterMixin) else network.delete_adapter(name)
                if getattr(network, "peft_config", None) == {}:  # the first one failed: as if it had never been tried
                    PeftAdapterMixin.unload_lora(network)
            raise

    def _load_of_stable_diffusion(self, state: dict[str, Tensor], alphas: Any, metadata: Any, name: str) -> None:
        foreign = sorted(key for key in state if not key.startswith(("unet.", "text_encoder.")) or "lora" not in key)
        if foreign or not state:
            raise ValueError(f"it is no LoRA of Stable Diffusion 1.x or 2.x ({foreign[:1] or 'empty'})")
        shared = {"network_alphas": alphas, "metadata": metadata, "adapter_name": name, "_pipeline": self}
        if any(key.startswith("unet.") for key in state):
            for network in (self.unet, self.base):
                if network is not None:
                    network.load_lora_adapter(dict(state), prefix="unet", **shared)
        self.load_lora_into_text_encoder(dict(state), text_encoder=self.text_encoder, **shared)

    def fuse_lora(self, components: list[str] | None = None, **options: Any) -> None:
        """As in diffusers; components: default all that have an adapter."""
        super().fuse_lora(components=self._adapted() if components is None else components, **options)

    def unfuse_lora(self, components: list[str] | None = None, **options: Any) -> None:
        """As in diffusers; components: default all that have an adapter."""
        super().unfuse_lora(components=self._adapted() if components is None else components, **options)

    def _adapted(self) -> list[str]:
        return [name for name in self._lora_loadable_modules if getattr(getattr(self, name), "peft_config", None)]


@contextlib.contextmanager
def _told(source: Any) -> Iterator[None]:
    """What diffusers and peft raise becomes one UserError, and their logs are silent."""
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(diffusers_logging.CRITICAL)
    what = "the LoRA" if isinstance(source, dict) else f"the LoRA {source}"
    try:
        yield
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, SafetensorError) as error:
        told = " ".join(str(error).split())[:300]
        raise UserError(f"cannot load {what}: {told}") from None
    finally:
        diffusers_logging.set_verbosity(level)
