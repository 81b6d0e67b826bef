"""What each network is trained for (section 3.5): promises about losses, gradients and randomness, on tiny real networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiny import CLASSIFIER, CLIP_TOWER, FLOW, IMAGE_CODER, REFINER, UNET, alive, clips, generators, randn
from videogen.config import UserError, parse_train_config
from videogen.data.clips import ClipBatch
from videogen.models.pretrained import load_network
from videogen.models.unet import VideoUNet
from videogen.stages.cascade import super_resolve
from videogen.stages.conditions import encode_frames, encode_text, resize_frames
from videogen.training.objectives import Objective, build_objective
from videogen.training.objectives.denoising import (
    VideoDiffusionObjective,
)
from videogen.training.objectives.reconstruction import shifted, shrunk
from videogen.training.objectives.text_encoder import TextEncoderObjective
from videogen.training.objectives.video_classifier import GAIN, QUANTITIES, spoil

SEEDS = (3, 4, 5, 6)


@dataclass(frozen=True)
class Task:
    """A recipe's objective, options and network, and clips for it. random: whether the generators matter."""

    objective: str
    options: Mapping[str, Any]
    network: Mapping[str, Any]
    frames: int = 4
    random: bool = True


ADVERSARY = {"adversarial_weight": 0.5}
MODEL = {"image_model": "./pipeline"}
SMALLER = "./runs/super_resolution_1/network"
TASKS = {
    "text_encoder": Task(
        "text_encoder",
        {"tokenizer": "./runs", "storyboard_frame": 16},
        {"projection_dim": 16, "text_config": CLIP_TOWER, "vision_config": {**CLIP_TOWER, "patch_size": 8}},
        random=False,
    ),
    "text_encoder, words": Task(
        "text_encoder",
        {
            "tokenizer": "./runs",
            "storyboard_frame": 16,
            "initial": "./runs/text_encoder/network",
            "words_weight": 1.0,
        },
        {"projection_dim": 16, "text_config": CLIP_TOWER, "vision_config": {**CLIP_TOWER, "patch_size": 16}},
        random=False,
    ),
    "autoencoder": Task("autoencoder", {}, IMAGE_CODER),
    "autoencoder, equivariance": Task("autoencoder", {"equivariance": 2.0}, IMAGE_CODER),
    "autoencoder, adversary": Task("autoencoder", ADVERSARY, IMAGE_CODER),
    "text_to_image": Task("text_to_image", {**MODEL, "text_dropout": 0.5}, {"sample_size": 8, **UNET}),
    "base": Task(
        "video_diffusion",
        {**MODEL, "initial": "./runs/text_to_image/network", "downscale": 4, "reference_dropout": 0.5},
        {"sample_size": 2, **UNET},
    ),
    "super_resolution": Task(
        "video_diffusion",
        {**MODEL, "initial": "./runs/base/network", "downscale": 2, "condition_noise": 0.3},
        {"sample_size": 4, "condition_channels": 4, **UNET},
    ),
    "super_resolution, expected latents": Task(
        "video_diffusion",
        {**MODEL, "initial": "./runs/base/network", "downscale": 2, "reference_dropout": 0.5},
        {"sample_size": 4, "condition_channels": 8, "condition_error": 0.05, **UNET},
    ),
    "super_resolution, blurred, on crops": Task(
        "video_diffusion",
        {**MODEL, "initial": "./runs/text_to_image/network", "downscale": 2, "crop": 2},
        {"sample_size": 4, "condition_channels": 8, "condition_error": 0.05, "condition_blur": 1, **UNET},
    ),
    "super_resolution, of what the one below makes": Task(
        "video_diffusion",
        {**MODEL, "initial": SMALLER, "below": SMALLER, "reference_dropout": 0.5},
        {"sample_size": 8, "condition_channels": 4, **UNET},
    ),
    "super_resolution, of details": Task(
        "video_diffusion",
        {**MODEL, "initial": SMALLER, "downscale": 2, "relative_error": True, "crop": 2, "crop_anywhere": True},
        {"sample_size": 4, "condition_channels": 8, "condition_error": 0.05, **UNET},
    ),
    "latent_flow": Task("latent_flow", MODEL, FLOW, frames=3, random=False),
    "refiner": Task("refiner", {**MODEL, "latent_flow": "./runs/latent_flow/network"}, REFINER, frames=5),
    "video_decoder": Task("video_decoder", {**MODEL, "clean": 0.5}, {}),
    "video_classifier": Task("video_classifier", {"clean": 0.2}, CLASSIFIER),
    "video_decoder, adversary": Task("video_decoder", {**MODEL, **ADVERSARY}, {}),
}


def built(task: Task, folder: Path, **options: Any) -> tuple[Objective, nn.Module]:
    """The objective and a network whose every layer counts."""
    table = {"objective": task.objective, "options": {**task.options, **options}, "network": task.network}
    torch.manual_seed(0)
    objective = build_objective(parse_train_config(table, "test"), folder.parent)
    torch.manual_seed(0)  # the same network whether or not there is a companion
    return objective, alive(objective.build(task.network)).train()


def batch(task: Task) -> ClipBatch:
    labels = task.objective == "video_classifier" or "words_weight" in task.options
    return clips(len(SEEDS), task.frames, flow=task.objective == "latent_flow", labels=labels)


def loss(objective: Objective, network: nn.Module, given: ClipBatch, seeds: tuple[int, ...], step: int = 0) -> Tensor:
    value, scalars = objective.loss(network, given, generators(*seeds), step)
    assert value.ndim == 0
    assert all(item.ndim == 0 and not item.requires_grad for item in scalars.values())
    return value


def gradients(module: nn.Module) -> dict[str, Tensor | None]:
    found = {name: item.grad for name, item in module.named_parameters()}
    module.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("name", [name for name in TASKS if TASKS[name].objective != "text_encoder"])
def test_micro_batches_make_the_loss_of_the_batch_and_the_generators_all_chance(tiny_folder: Path, name: str) -> None:
    """CLIP's loss contrasts all clips of a batch and is left out. Tolerance: sums in another order."""
    task = TASKS[name]
    objective, network = built(task, tiny_folder)
    given = batch(task)
    whole = loss(objective, network, given, SEEDS)
    parts = [loss(objective, network, given[part], SEEDS[part]) for part in (slice(0, 1), slice(1, 4))]
    assert (parts[0] * 1 + parts[1] * 3).item() / 4 == pytest.approx(whole.item(), rel=1e-4)
    assert torch.equal(loss(objective, network, given, SEEDS), whole)
    torch.manual_seed(99)
    assert torch.equal(loss(objective, network, given, SEEDS), whole)
    assert torch.equal(loss(objective, network, given, SEEDS[::-1]), whole) != task.random


@pytest.mark.parametrize("name", ["text_to_image", "latent_flow"])
def test_a_network_may_start_from_an_earlier_one_of_its_kind(tiny_folder: Path, name: str) -> None:
    place = f"runs/{name}/network"
    options = {**TASKS[name].options, "initial": f"./{place}"}
    table = {"objective": TASKS[name].objective, "options": options, "network": TASKS[name].network}
    network = build_objective(parse_train_config(table, "test"), tiny_folder.parent).build(TASKS[name].network)
    earlier = load_network(type(network), tiny_folder.parent / place).state_dict()
    assert all(torch.equal(tensor, earlier[key]) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize("name", ["refiner", "super_resolution"])
def test_a_network_that_counts_from_its_condition_starts_there(tiny_folder: Path, name: str) -> None:
    """Also one that starts from a network which counts from nothing; its loss is then that of the best linear guess."""
    task = TASKS[name]
    given, losses = batch(task), []
    for error in (None, 1e6, 0.5):  # nothing is known, next to nothing, something
        table = {"objective": task.objective, "options": task.options, "network": {**task.network, "condition_error": error}}
        objective = build_objective(parse_train_config(table, "test"), tiny_folder.parent)
        network = objective.build(table["network"])
        assert network.conv_out.weight.any() == (error is None)
        losses.append(loss(objective, network, given, SEEDS).item())
    assert losses[2] < losses[1]


def test_one_that_counts_already_goes_on_as_it_is(tiny_folder: Path, tmp_path: Path) -> None:
    task = TASKS["super_resolution"]
    network = {**task.network, "condition_error": 0.5}
    made = alive(VideoUNet(**network))
    made.save_pretrained(tmp_path / "earlier")
    options = {**task.options, "initial": str(tmp_path / "earlier")}
    table = {"objective": task.objective, "options": options, "network": network}
    built = build_objective(parse_train_config(table, "test"), tiny_folder.parent).build(network)
    assert torch.equal(built.conv_out.weight, made.conv_out.weight)


@pytest.mark.parametrize("name", TASKS)
def test_every_weight_is_trained_and_nothing_frozen(tiny_folder: Path, name: str) -> None:
    """But for biases that cancel: of attention's keys in the softmax, and the critic's last while it tells nothing apart."""
    objective, network = built(TASKS[name], tiny_folder)
    value = loss(objective, network, batch(TASKS[name]), SEEDS)
    assert value.isfinite()
    value.backward()
    parts = {"network": network, **({"companion": objective.companion} if objective.companion else {})}
    for part in parts.values():
        still = [key for key, grad in gradients(part).items() if grad is None or not grad.abs().max() > 0]
        assert [key for key in still if not key.endswith(("k_proj.bias", "to_k.bias", "8.bias"))] == []
    frozen = [part for part in vars(objective).values() if isinstance(part, nn.Module) and part is not objective.companion]
    assert not any(item.requires_grad for part in frozen for item in part.parameters())


def test_states_become_their_words_and_the_closing_ones_what_was_meant(tiny_folder: Path) -> None:
    """States of one word, wherever it stands, end up pointing one way, and those of two words do not."""
    task = TASKS["text_encoder, words"]
    objective, network = built(task, tiny_folder)
    assert isinstance(objective, TextEncoderObjective)
    assert objective.companion is not None
    optimizer = torch.optim.Adam([*network.parameters(), *objective.companion.parameters()], 1e-2)
    for _ in range(60):
        value, facts = objective.loss(network, batch(task), generators(*SEEDS), 0)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert facts["words"] < 0.5  # from the logarithm of the vocabulary
    assert facts["meaning"] < 0.4  # of 3 to 10 classes an attribute; all of them fit into one direction
    tokens = objective.tokenizer(batch(task).captions, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        states = network.text_model(tokens.input_ids).last_hidden_state
    said = tokens.attention_mask.bool() & (tokens.input_ids != objective.tokenizer.eos_token_id)
    words, states = tokens.input_ids[said], F.normalize(states[said], dim=-1)
    cosine = (states @ states.T).fill_diagonal_(0.0)
    same = (words[:, None] == words).fill_diagonal_(False)
    assert cosine[same].mean() > 0.9
    assert cosine[~same].mean() < 0.5


def test_clips_without_labels_teach_the_words_alone(tiny_folder: Path) -> None:
    task = TASKS["text_encoder, words"]
    objective, network = built(task, tiny_folder)
    unlabelled = dataclasses.replace(batch(task), labels=None)
    _, facts = objective.loss(network, unlabelled, generators(*SEEDS), 0)
    assert "words" in facts
    assert "meaning" not in facts


def test_what_cannot_be_gone_on_from_is_refused(tiny_folder: Path) -> None:
    task = TASKS["text_encoder, words"]
    objective, _ = built(task, tiny_folder)
    with pytest.raises(UserError, match="another CLIP than the recipe describes"):
        objective.build({**task.network, "projection_dim": 8})


@pytest.mark.parametrize("frames", [1, 4])
def test_the_video_decoder_pays_for_what_changes_between_frames_and_should_not(tiny_folder: Path, frames: int) -> None:
    task = TASKS["video_decoder"]
    given = clips(len(SEEDS), frames)
    losses = []
    for weight in (0.0, 2.0):
        objective, network = built(task, tiny_folder, flicker_weight=weight)
        losses.append(loss(objective, network, given, SEEDS))
    made = objective.preview(network, given, generators(*SEEDS))
    changes = (made.diff(dim=1) - given.frames.diff(dim=1)).abs()
    expected = 2 * changes.mean() if frames > 1 else torch.tensor(0.0)
    torch.testing.assert_close(losses[1] - losses[0], expected)


@pytest.mark.parametrize("name", ["autoencoder", "video_decoder"])
def test_each_side_of_the_adversary_has_its_own_gradients(tiny_folder: Path, name: str) -> None:
    task, step = TASKS[name], 7

    def of_both(**options: Any) -> tuple[dict[str, Tensor | None], dict[str, Tensor | None]]:
        objective, network = built(task, tiny_folder, **options)
        if objective.companion is not None:
            objective.companion.load_state_dict(critic)
        loss(objective, network, batch(task), SEEDS, step).backward()
        return gradients(network), gradients(objective.companion or nn.Identity())

    companion = built(task, tiny_folder, adversarial_weight=1.0)[0].companion
    assert companion is not None
    critic = companion.state_dict()
    weak, strong = of_both(adversarial_weight=0.1), of_both(adversarial_weight=5.0)
    torch.testing.assert_close(weak[1], strong[1], rtol=0, atol=0)  # fooling never teaches the critic
    waiting, without = of_both(adversarial_weight=5.0, adversarial_start=step + 1), of_both()
    torch.testing.assert_close(waiting[0], without[0])  # the critic's lesson never reaches the network
    torch.testing.assert_close(waiting[1], strong[1], rtol=0, atol=0)  # the critic learns from the first step
    assert not torch.equal(strong[0]["decoder.conv_out.weight"], without[0]["decoder.conv_out.weight"])  # type: ignore[arg-type]


def test_latents_and_images_are_shifted_and_shrunk_alike() -> None:
    """Means of 4x4 pixels as latents, and images without curvature: there, interpolating both comes to the same."""
    x = torch.linspace(-1, 1, 32)
    slopes = torch.tensor([[0.3, 0.1], [-0.2, 0.4], [0.5, -0.5], [0.0, 0.2], [0.1, 0.1], [-0.4, 0.0]])
    images = (slopes[:, :1, None] * x[:, None] + slopes[:, 1:, None] * x)[:, None].expand(-1, 3, -1, -1)
    latents = F.avg_pool2d(images, 4)
    places = set()
    for seed in range(20):
        cut, seen = shifted(latents, images, generators(seed, seed + 50, seed + 100))  # two frames a clip
        torch.testing.assert_close(cut, F.avg_pool2d(seen, 4))
        places |= {round(float(each), 4) for each in (seen - images[..., :28, :28]).mean((1, 2, 3))}
        assert seen.shape == (6, 3, 28, 28)
        again = shifted(latents[2:4], images[2:4], generators(seed + 50))  # a clip alone
        torch.testing.assert_close(again[1], seen[2:4], rtol=0, atol=0)
    assert len(places) > 20  # whole pixels, both ways
    small, half = shrunk(latents, images)
    torch.testing.assert_close(small, F.avg_pool2d(half, 4))


def test_the_autoencoder_learns_to_decode_what_is_shifted_or_shrunk(tiny_folder: Path) -> None:
    """Its weight counts, and the gradient reaches the encoder through what was shifted (even steps) or shrunk (odd)."""
    task = TASKS["autoencoder, equivariance"]
    for step in (0, 1):
        losses, slopes = [], []
        for weight in (0.0, 1.0, 2.0):
            objective, network = built(task, tiny_folder, equivariance=weight)
            value = loss(objective, network, batch(task), SEEDS, step)
            value.backward()
            losses.append(value.item())
            slopes.append(network.encoder.conv_in.weight.grad)
        assert losses[0] < losses[1] < losses[2]
        assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-4)
        assert not torch.equal(slopes[0], slopes[1])


def test_the_autoencoder_ends_with_latents_of_unit_variance(tiny_folder: Path) -> None:
    objective, network = built(TASKS["autoencoder"], tiny_folder)
    given = clips(8)
    assert abs(encode_frames(network, given.frames).std() - 1) > 0.05
    objective.finish(network, given)
    assert encode_frames(network, given.frames).std().item() == pytest.approx(1, abs=1e-3)
    assert type(network.config.scaling_factor) is float  # saved with the network


@pytest.mark.parametrize("name", [name for name in TASKS if "adversary" not in name])
def test_previews_are_frames_and_repeat_themselves(tiny_folder: Path, name: str) -> None:
    task = TASKS[name]
    objective, network = built(task, tiny_folder)
    network.eval()
    with torch.no_grad():
        shown, again = (objective.preview(network, batch(task)[:2], generators(1, 2)) for _ in range(2))
    assert (shown.shape[0], shown.shape[2]) == (2, 3)
    assert shown.isfinite().all()
    assert torch.equal(shown, again)


def test_a_clip_is_spoiled_as_much_as_is_said() -> None:
    """The network is taught by these amounts: none leaves the clip but for its contrast, and each shows where it should."""
    frames = randn(8, 3, 4, 4).tanh().repeat_interleave(8, 2).repeat_interleave(8, 3) / 2  # fields with sharp edges
    (chance,) = generators(0)
    kept, amounts = spoil(frames, chance, 1.0)
    assert amounts.tolist() == [0, 0, 0, 0]
    contrast = (kept[0, 0, 0, 0] + 1) / (frames[0, 0, 0, 0] + 1)
    torch.testing.assert_close(kept + 1, (frames + 1) * contrast)
    assert abs(contrast - 1) <= GAIN
    found = [spoil(frames, *generators(seed), 0.0) for seed in range(60)]
    assert all(0 <= value <= 1 for _, amounts in found for value in amounts.tolist())

    def alone(name: str) -> Tensor:
        """The clip that suffered most of those that nothing else befell."""
        place = QUANTITIES.index(name)
        return max(((a[place].item(), made) for made, a in found if a.count_nonzero() == 1), key=lambda each: each[0])[1]

    def roughness(frames: Tensor) -> float:
        return frames.diff(dim=-1).square().mean().item()

    assert roughness(alone("blur")) < roughness(frames) < roughness(alone("noise"))
    brightness = alone("flicker").mean((1, 2, 3))
    assert brightness.std() > 1.5 * frames.mean((1, 2, 3)).std()
    assert not torch.equal(alone("shake").sort().values, frames.sort().values)


def test_a_cascade_network_starts_from_the_one_it_is_told(tiny_folder: Path) -> None:
    """As training starts it, the network predicts what the image network does for every frame."""
    task = TASKS["base"]
    table = {"objective": task.objective, "options": task.options, "network": task.network}
    network = build_objective(parse_train_config(table, "test"), tiny_folder.parent).build(task.network)
    from diffusers import UNet2DConditionModel

    from videogen.models.pretrained import load_component

    image = load_component(UNet2DConditionModel, tiny_folder, "unet")
    for key, tensor in image.state_dict().items():
        if key != "conv_in.weight":
            assert torch.equal(network.state_dict()[key], tensor), key


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("refiner", clips(2, 4), "the refiner learns from 3, 5, 7 ... frames, not 4"),
        ("latent_flow", clips(2, 5, flow=True), "the latent flow network learns from 3 frames, not 5"),
        ("latent_flow", clips(2, 3), "these clips carry no flow"),
        ("video_classifier", clips(2, 4), "these clips carry no labels"),
    ],
)
def test_clips_that_do_not_fit_are_refused(tiny_folder: Path, name: str, given: ClipBatch, message: str) -> None:
    objective, network = built(TASKS[name], tiny_folder)
    with pytest.raises(UserError, match=message):
        loss(objective, network, given, SEEDS[:2])


@pytest.mark.parametrize("name", [name for name in TASKS if "adversary" not in name])
def test_a_network_that_cannot_be_built_is_refused(tiny_folder: Path, name: str) -> None:
    objective, _ = built(TASKS[name], tiny_folder)
    wrong: list[dict[str, Any]] = [{"widht": 4}]
    if TASKS[name].objective == "text_encoder":
        wrong += [{"text_config": {"hidden_size": 7}}, {"vision_config": {"widht": 4}}]
    for change in wrong:
        with pytest.raises(UserError, match="cannot be built from the recipe") as refused:
            objective.build({**TASKS[name].network, **change})
        assert "\n" not in str(refused.value)


def test_a_condition_that_no_stage_makes_is_refused(tiny_folder: Path) -> None:
    task = TASKS["super_resolution"]
    objective, _ = built(task, tiny_folder)
    with pytest.raises(UserError, match=r"condition_channels is 12: .* resolution \(4\) or also .* \(8\)"):
        objective.build({**task.network, "condition_channels": 12})


def test_super_resolution_learns_from_what_the_one_below_makes(tiny_folder: Path) -> None:
    """As in generation: of the true clip at a quarter of the size, by the same words, without a reference where it has none."""
    task = TASKS["super_resolution, of what the one below makes"]
    objective, _ = built(task, tiny_folder)
    assert isinstance(objective, VideoDiffusionObjective)
    given, dropped = batch(task), torch.tensor([False, True, False, True])
    text = encode_text(objective.tokenizer, objective.text_encoder, given.captions)
    clean, reference, low = objective.latents(given, dropped, generators(*SEEDS))
    assert low is not None
    assert torch.equal(reference.flatten(1).any(dim=1), ~dropped)
    smaller = load_network(VideoUNet, tiny_folder.parent / SMALLER).eval()
    half, quarter = (encode_frames(objective.autoencoder, resize_frames(given.frames, (side, side))) for side in (16, 8))
    shown = half[:, 0] * ~dropped[:, None, None, None]
    expected = super_resolve(smaller, objective.scheduler, text, shown, quarter, given.fps, generators(*SEEDS), num_steps=1)
    torch.testing.assert_close(low, expected, rtol=0, atol=1e-4)
    assert not low.requires_grad
    without, _ = built(task, tiny_folder, below=None)
    assert isinstance(without, VideoDiffusionObjective)
    same, _, true = without.latents(given, dropped, generators(*SEEDS))
    assert torch.equal(same, clean)
    assert true is not None
    torch.testing.assert_close(true, half)


def test_relative_errors_want_an_error_that_is_expected(tiny_folder: Path) -> None:
    with pytest.raises(UserError, match=r"options.relative_error counts from network.condition_error: set it, or leave"):
        built(TASKS["super_resolution"], tiny_folder, relative_error=True)


@pytest.mark.parametrize("name", ["base", "super_resolution, of what the one below makes"])
def test_clips_can_be_made_ready_before(tiny_folder: Path, name: str) -> None:
    """What is ready depends on the clip and its generator alone, and the loss of it is the loss."""
    task = TASKS[name]
    objective, network = built(task, tiny_folder)
    given, seeds = batch(task), generators(*SEEDS)
    ready = objective.ready(given, seeds)
    assert len(ready) == len(given)
    value, _ = objective.ready_loss(network, ready, seeds, 0)
    assert value.item() == loss(objective, network, given, SEEDS).item()
    alone = objective.ready(given[1:2], generators(SEEDS[1]))
    assert alone.parts.keys() == ready.parts.keys()
    torch.testing.assert_close(dict(alone.parts), dict(ready[1:2].parts), rtol=1e-4, atol=1e-4)
    assert not any(each.requires_grad for each in ready.parts.values())


def test_an_objective_without_frozen_networks_keeps_no_clips(tiny_folder: Path) -> None:
    objective, _ = built(TASKS["autoencoder"], tiny_folder)
    with pytest.raises(UserError, match=r"data.kept: clips are kept for the objective 'video_diffusion' only"):
        objective.ready(batch(TASKS["autoencoder"]), generators(*SEEDS))


@pytest.mark.parametrize(("name", "below"), [("base", SMALLER), ("super_resolution", "./runs/base/network")])
def test_only_super_resolution_has_one_below(tiny_folder: Path, name: str, below: str) -> None:
    with pytest.raises(UserError, match=r"options.below is for super-resolution, and names the super-resolution network"):
        built(TASKS[name], tiny_folder, below=below)


def test_an_image_model_that_is_none_is_refused(tiny_folder: Path) -> None:
    for name in ("text_to_image", "latent_flow", "video_decoder"):
        with pytest.raises(UserError, match="runs"):
            built(TASKS[name], tiny_folder, image_model="./runs")
    with pytest.raises(UserError, match="image_model is missing"):
        parse_train_config({"objective": "video_decoder", "options": {}, "network": {}}, "test")
