"""What a network is trained for (section 3.5): the only place where networks, frozen parts and losses meet.

An objective knows nothing of optimisers, files or ranks, and the trainer knows nothing of networks: between them stand
`build`, `loss`, `preview` and `finish`; and `ready` and `ready_loss`, the two halves of a loss, where the first may be kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from videogen.config import UserError
from videogen.data.clips import ClipBatch, ReadyBatch


class Objective(ABC):
    """One training task. Frozen parts live in the objective (moved by `to`); the trained network is passed in.

    companion: a network that is optimised and checkpointed beside the trained one but never exported (a GAN's
    discriminator), or None. `loss` must give gradients to both in one scalar.
    """

    companion: nn.Module | None = None

    @abstractmethod
    def build(self, network: Mapping[str, Any]) -> nn.Module:
        """A network to train: new with these keyword arguments, or started from earlier weights (section 3.5)."""

    @abstractmethod
    def loss(
        self, network: nn.Module, clips: ClipBatch, generators: list[torch.Generator], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss (mean over the clips) and named scalars to log. All randomness of clip i comes from `generators[i]` (on
        the CPU), so the split into ranks and micro-batches does not matter."""

    def ready(self, clips: ClipBatch, generators: list[torch.Generator]) -> ReadyBatch:
        """All that `ready_loss` reads of these clips, made by the frozen networks: what `data.kept` keeps. What chance decides
        here is decided once for each clip that is kept, but for its captions. Raises UserError where an objective has no
        such part."""
        raise UserError("data.kept: clips are kept for the objective 'video_diffusion' only; leave it out")

    def ready_loss(
        self, network: nn.Module, ready: ReadyBatch, generators: list[torch.Generator], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`loss` of clips that are ready: both together, with the same generators, are `loss`."""
        raise NotImplementedError

    @abstractmethod
    def preview(self, network: nn.Module, clips: ClipBatch, generators: list[torch.Generator]) -> Tensor:
        """What the network makes of these clips, to look at: frames (N, F, 3, H, W) in [-1, 1]."""

    def learning_rate_factor(self, name: str) -> float:
        """What multiplies the learning rate of this parameter of the network: 1 unless the objective says otherwise."""
        return 1.0

    def finish(self, network: nn.Module, clips: ClipBatch) -> None:  # noqa: B027
        """Measure what belongs into the network's configuration before it is exported, e.g. the latent scale."""

    def to(self, device: torch.device) -> None:
        """Move every frozen part and the companion to `device`."""
        for part in vars(self).values():
            if isinstance(part, nn.Module):
                part.to(device)


def make(cls: type[nn.Module], arguments: Mapping[str, Any]) -> Any:
    """Call a network class with the recipe's keyword arguments (unknown ones are an error, unlike with `from_config`)."""
    try:
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()})
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"network: {cls.__name__} cannot be built from the recipe: {error}") from None


def chance(generators: list[torch.Generator], probability: float, device: torch.device) -> Tensor:
    """One biased coin a clip; bool (B,)."""
    return torch.stack([torch.rand((), generator=generator) < probability for generator in generators]).to(device)
