"""Mini's own CLIP: captions against clips (Radford et al. 2021). The paper takes CLIP as it is (section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from videogen.config import TextEncoderOptions, UserError
from videogen.data.clips import ClipBatch
from videogen.data.diorama import ATTRIBUTES
from videogen.models.pretrained import load_network, load_tokenizer
from videogen.stages.conditions import resize_frames
from videogen.training.objectives.base import Objective

SHARPNESS = 10.0
"""Of the cosines that tell words (ours): so low that the loss is small only where the word is most of the state."""


class TextEncoderObjective(Objective):
    """Contrast captions with storyboards: four frames of a clip tiled 2x2, so that motion can be read off one picture.

    Contrast looks at the last state of a caption only, and at what a storyboard shows at a glance; the other words' states,
    which the networks read, may forget what they said. With `words_weight` each of them has to be its own word before all, and
    the states that close a caption (its end and the padding, which have read all of it) what it means: the labels of the
    clip, where its source knows them, however they were worded.
    The loss contrasts all clips of a forward, so, unlike every other objective, it depends on the size of a micro-batch.
    """

    def __init__(self, options: TextEncoderOptions) -> None:
        self.options = options
        self.tokenizer = load_tokenizer(options.tokenizer)
        self.side = options.storyboard_frame

    def build(self, network: Mapping[str, Any]) -> nn.Module:
        made = self._build(network)
        if self.options.initial is not None:
            before = load_network(CLIPModel, self.options.initial)
            try:
                made.load_state_dict(before.state_dict())
            except RuntimeError:
                raise UserError(f"network: {self.options.initial} is another CLIP than the recipe describes") from None
        if self.options.words_weight:
            self.companion = Readers(made.config.text_config.hidden_size, len(self.tokenizer))
        return made

    def _build(self, network: Mapping[str, Any]) -> CLIPModel:
        kinds: dict[str, Any] = {"text_config": CLIPTextConfig, "vision_config": CLIPVisionConfig}
        _check_keys("", network, CLIPConfig)
        for name, kind in kinds.items():
            _check_keys(f"{name}.", network.get(name, {}), kind)
        try:
            config = CLIPConfig(**network)
            config.text_config.vocab_size = len(self.tokenizer)
            config.text_config.max_position_embeddings = self.tokenizer.model_max_length
            config.text_config.bos_token_id = self.tokenizer.bos_token_id
            config.text_config.eos_token_id = self.tokenizer.eos_token_id
            config.text_config.pad_token_id = self.tokenizer.pad_token_id
            config.vision_config.image_size = 2 * self.side
            return CLIPModel(config)
        except (TypeError, ValueError, StrictDataclassError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"network: CLIPModel cannot be built from the recipe: {reason}") from None

    def storyboards(self, clips: ClipBatch) -> Tensor:
        """(B, 3, 2*side, 2*side): four evenly spaced frames, read like a page."""
        chosen = torch.linspace(0, clips.frames.shape[1] - 1, 4).round().long()
        return storyboard(clips.frames[:, chosen], self.side)

    def loss(
        self, network: nn.Module, clips: ClipBatch, generators: list[torch.Generator], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = self.tokenizer(clips.captions, padding="max_length", truncation=True, return_tensors="pt")
        device = clips.frames.device
        ids = tokens.input_ids.to(device)
        output = network(input_ids=ids, pixel_values=self.storyboards(clips))  # no mask of the padding, as `encode_text`
        logits, own = output.logits_per_text, torch.arange(len(clips), device=device)
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        facts = {"contrast": loss.detach(), "accuracy": (logits.argmax(1) == own).float().mean()}
        if isinstance(self.companion, Readers):
            states, said = output.text_model_output.last_hidden_state, tokens.attention_mask.to(device).bool()
            said &= ids != self.tokenizer.eos_token_id
            facts |= self.companion.losses(states, ids, said, clips.labels)
            loss = loss + self.options.words_weight * (facts["words"] + facts.get("meaning", 0.0))
        return loss, {name: value.detach() for name, value in facts.items()}

    def preview(self, network: nn.Module, clips: ClipBatch, generators: list[torch.Generator]) -> Tensor:
        return self.storyboards(clips)[:, None]


class Reader(nn.Module):
    """Tells classes by the direction of states only: states (N, D) -> logits (N, classes), SHARPNESS times a cosine.

    A linear layer would be content with a trace of the class beside everything else, which networks that read the states
    hardly find (docs/log.md); here it has to be most of the state.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, channels))

    def forward(self, states: Tensor) -> Tensor:
        return SHARPNESS * F.normalize(states, dim=-1) @ F.normalize(self.weight, dim=-1).T


class Readers(nn.Module):
    """What the states have to tell, and to whom: each word its own, the closing states every attribute at once."""

    def __init__(self, channels: int, words: int) -> None:
        super().__init__()
        self.word = Reader(channels, words)
        self.attributes = nn.ModuleList(Reader(channels, len(classes)) for classes in ATTRIBUTES.values())

    def losses(self, states: Tensor, ids: Tensor, said: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """Cross-entropies of states (B, L, D): of `ids` where `said`, both (B, L), and of labels (B, A), if any, elsewhere."""
        found = {"words": F.cross_entropy(self.word(states[said]), ids[said])}
        if labels is not None:
            closing, clip = states[~said], (~said).nonzero()[:, 0]
            wrong = [F.cross_entropy(read(closing), labels[clip, i]) for i, read in enumerate(self.attributes)]
            found["meaning"] = torch.stack(wrong).mean()
        return found


def storyboard(frames: Tensor, side: int) -> Tensor:
    """Four frames (B, 4, 3, H, W) as one picture (B, 3, 2*side, 2*side), read like a page."""
    a, b, c, d = resize_frames(frames, (side, side)).unbind(1)
    return torch.cat([torch.cat([a, b], dim=3), torch.cat([c, d], dim=3)], dim=2)


def _check_keys(place: str, table: Any, config: Any) -> None:
    """transformers keeps keys that it does not know without a word."""
    if not isinstance(table, Mapping):
        raise UserError(f"network: {place.removesuffix('.')} must be a table, not {table!r}")
    unknown = sorted(table.keys() - config().to_dict().keys())
    if unknown:
        raise UserError(
            f"network: CLIPModel cannot be built from the recipe: {place}{unknown[0]} is no key of {config.__name__}"
        )
