"""VideoGenPipeline (Figure 2) keeps the promises of a diffusers pipeline, on a whole folder of tiny real parts."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from tiny import TEXT, generators, randn, write_stable_diffusion
from videogen.config import SCHEDULERS, UserError
from videogen.models.folders import MINI_SAMPLING
from videogen.models.pretrained import load_image_pipeline, other_scheduler
from videogen.pipeline import VideoGenOutput, VideoGenPipeline

CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-3}  # for other batches: convolutions may pick another algorithm
PROMPT = "a red ball bounces"


def make(pipe: VideoGenPipeline, prompt: Any = PROMPT, seed: int | None = 0, **options: Any) -> VideoGenOutput:
    """Five frames of 32x32 in a few steps."""
    if seed is not None:
        options = {"generator": generators(seed)[0], **options}
    options = {"num_frames": 3, "temporal_factor": 2, "num_inference_steps": 1, "output_type": "pt", **options}
    result = pipe(prompt, **options)
    assert isinstance(result, VideoGenOutput)
    return result


@pytest.fixture(scope="module")
def plain(tiny_pipe: VideoGenPipeline) -> Tensor:
    return make(tiny_pipe).frames


def test_every_output_type_shows_the_same_video(tiny_pipe: VideoGenPipeline, plain: Tensor) -> None:
    assert plain.shape == (1, 5, 3, 32, 32)
    assert 0 <= plain.min() < plain.max() <= 1
    arrays = make(tiny_pipe, output_type="np").frames
    assert np.array_equal(arrays, plain.movedim(2, -1).numpy())
    ((first, *others),) = make(tiny_pipe, output_type="pil").frames
    assert (len(others), first.size, first.mode) == (4, (32, 32), "RGB")
    assert np.array_equal(np.asarray(first), np.rint(arrays[0, 0] * 255).astype(np.uint8))
    assert make(tiny_pipe, output_type="latent").frames.shape == (1, 5, 4, 8, 8)


def test_a_tuple_holds_the_three_fields(tiny_pipe: VideoGenPipeline, plain: Tensor) -> None:
    options: dict[str, Any] = {"num_frames": 3, "temporal_factor": 2, "num_inference_steps": 1, "output_type": "pt"}
    frames, fps, reference = tiny_pipe(PROMPT, generator=generators(0)[0], return_dict=False, **options)
    assert torch.equal(frames, plain)
    assert (fps, [picture.size for picture in reference]) == (8.0, [(32, 32)])
    frames, fps, reference = tiny_pipe(PROMPT, use_reference=False, return_dict=False, **options)
    assert (fps, reference) == (8.0, None)


def test_frames_and_sizes_are_as_asked(tiny_pipe: VideoGenPipeline) -> None:
    assert make(tiny_pipe, num_frames=2, temporal_factor=8).frames.shape == (1, 9, 3, 32, 32)
    assert make(tiny_pipe, num_frames=4, temporal_factor=1).frames.shape == (1, 4, 3, 32, 32)
    assert make(tiny_pipe, num_frames=1, temporal_factor=4).frames.shape == (1, 1, 3, 32, 32)
    output = make(tiny_pipe, height=48, width=64)
    assert (output.frames.shape, output.reference[0].size) == ((1, 5, 3, 48, 64), (64, 48))


@pytest.mark.parametrize(("given", "whole", "base"), [(None, 16.0, 4.0), (24, 24.0, 6.0)])
def test_fps_is_of_the_result_and_conditions_each_network_at_its_own_rate(
    tiny_pipe: VideoGenPipeline, given: float | None, whole: float, base: float
) -> None:
    seen: dict[str, list[float]] = {"base": [], "super_resolution_2": [], "refiner": []}
    hooks = [
        getattr(tiny_pipe, name).register_forward_pre_hook(
            lambda _, __, options, rates=rates: rates.extend(options["fps"].unique().tolist()), with_kwargs=True
        )
        for name, rates in seen.items()
    ]
    try:
        assert make(tiny_pipe, temporal_factor=4, fps=given).fps == whole
    finally:
        for hook in hooks:
            hook.remove()
    assert seen == {"base": [base], "super_resolution_2": [base], "refiner": [2 * base, 4 * base]}


def test_steps_are_counted_over_all_stages(tiny_pipe: VideoGenPipeline) -> None:
    told: list[tuple[int, str]] = []

    def tell(pipe: VideoGenPipeline, step: int, timestep: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        assert tensors == {}
        told.append((step, pipe.stage))
        return tensors

    def stages(**options: Any) -> list[str]:
        told.clear()
        make(tiny_pipe, callback_on_step_end=tell, **options)
        assert [step for step, _ in told] == list(range(tiny_pipe.num_timesteps))
        return [stage for _, stage in told]

    steps = {"reference": 3, "base": 2, "super_resolution_1": 4, "super_resolution_2": 3, "refiner": 1}
    cascade = ["base"] * 2 + ["super-resolution 1"] * 4 + ["super-resolution 2"] * 3
    refined, decoded = ["temporal super-resolution"] * 3, ["decoding"] * 2  # three passes; 17 frames in windows of 16
    options = {"num_inference_steps": steps, "temporal_factor": 8}
    assert stages(**options) == ["reference image"] * 3 + cascade + refined + decoded
    assert stages(**options, image=Image.new("RGB", (5, 5)), output_type="latent") == cascade + refined
    assert stages(**options, use_reference=False, num_frames=1) == cascade + decoded[:1]
    assert stages(prompt=None, latents=randn(1, 40, 4, 8, 8)) == ["decoding"] * 3


def test_the_same_seed_makes_the_same_video(tiny_pipe: VideoGenPipeline, plain: Tensor) -> None:
    assert torch.equal(make(tiny_pipe).frames, plain)
    assert not torch.allclose(make(tiny_pipe, seed=1).frames, plain, atol=1e-2)
    torch.manual_seed(5)
    first = make(tiny_pipe, seed=None).frames
    torch.manual_seed(5)
    assert torch.equal(make(tiny_pipe, seed=None).frames, first)  # no generator: torch's own
    assert not torch.allclose(make(tiny_pipe, seed=None).frames, first, atol=1e-2)


def test_a_list_of_generators_makes_each_video_as_if_alone(tiny_pipe: VideoGenPipeline, plain: Tensor) -> None:
    prompts, pictures = ["a blue star spins", PROMPT], [Image.effect_noise((40, 30), 80) for _ in range(2)]
    both = make(tiny_pipe, prompts, generator=generators(3, 0)).frames
    torch.testing.assert_close(both[1:], plain, **CLOSE)
    both = make(tiny_pipe, prompts, generator=generators(3, 0), image=pictures).frames
    torch.testing.assert_close(both[1:], make(tiny_pipe, image=pictures[1]).frames, **CLOSE)


def test_several_videos_a_prompt(tiny_pipe: VideoGenPipeline, plain: Tensor) -> None:
    prompts = ["a blue star spins", PROMPT]
    output = make(tiny_pipe, prompts, generator=generators(1, 2, 3, 0), num_videos_per_prompt=2)
    assert (output.frames.shape, len(output.reference)) == ((4, 5, 3, 32, 32), 4)
    torch.testing.assert_close(output.frames[3:], plain, **CLOSE)
    same = make(tiny_pipe, num_videos_per_prompt=2).frames  # from one generator: not twice the same
    assert not torch.allclose(same[0], same[1], atol=1e-2)


def test_an_image_takes_the_place_of_the_generated_one(tiny_pipe: VideoGenPipeline, plain: Tensor) -> None:
    picture = Image.effect_noise((32, 32), 80).convert("RGB")
    output = make(tiny_pipe, image=picture)
    assert np.array_equal(np.asarray(output.reference[0]), np.asarray(picture))
    assert not torch.allclose(output.frames, plain, atol=1e-2)
    assert not torch.allclose(make(tiny_pipe, image=picture.rotate(90)).frames, output.frames, atol=1e-2)
    tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1
    assert torch.equal(make(tiny_pipe, image=tensor).frames, output.frames)
    assert torch.equal(make(tiny_pipe, image=[picture]).frames, output.frames)
    for odd in (Image.new("LA", (500, 3)), Image.new("P", (7, 90)), Image.new("I;16", (1, 1))):
        assert make(tiny_pipe, image=odd).frames.isfinite().all()


def test_any_text_to_image_pipeline_makes_the_reference(tiny_pipe: VideoGenPipeline, tmp_path: Path) -> None:
    """Its pictures are those it makes by itself, each from its video's generator; afterwards it is gone."""
    folder = write_stable_diffusion(tmp_path)
    model = load_image_pipeline(folder)
    model.scheduler = DDIMScheduler.from_config(model.scheduler.config, clip_sample=False)
    prompts = [PROMPT, "a box"]
    alone = [model(text, generator=source).images[0] for text, source in zip(prompts, generators(0, 1), strict=True)]
    given = make(tiny_pipe, prompts, generator=generators(0, 1), reference_model=model)
    assert [np.array_equal(a, b) for a, b in zip(given.reference, alone, strict=True)] == [True, True]
    model.scheduler.save_pretrained(folder / "scheduler")
    del model
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("PNDMScheduler", "DDIMScheduler"))
    loaded = make(tiny_pipe, prompts, generator=generators(0, 1), reference_model=str(folder))
    assert torch.equal(loaded.frames, given.frames)
    gc.collect()
    assert not [item for item in gc.get_objects() if type(item) is StableDiffusionPipeline]


def test_one_image_serves_all_videos_and_several_their_prompts(tiny_pipe: VideoGenPipeline) -> None:
    one, other = (Image.effect_noise((32, 32), 80).convert("RGB") for _ in range(2))

    def shown(images: Any) -> list[bool]:
        output = make(tiny_pipe, [PROMPT, "a box"], num_videos_per_prompt=2, image=images)
        return [np.array_equal(np.asarray(picture), np.asarray(one)) for picture in output.reference]

    assert shown(one) == [True] * 4
    assert shown([one, other]) == [True, True, False, False]


def test_without_a_reference(tiny_pipe: VideoGenPipeline, plain: Tensor) -> None:
    output = make(tiny_pipe, use_reference=False)
    assert output.reference is None
    assert not torch.allclose(output.frames, plain, atol=1e-2)


def test_embeddings_take_the_place_of_prompts(tiny_pipe: VideoGenPipeline, plain: Tensor) -> None:
    prompt_embeds, negative_prompt_embeds = tiny_pipe.encode_prompt([PROMPT], [""])
    embeds = {"prompt_embeds": prompt_embeds, "negative_prompt_embeds": negative_prompt_embeds}
    assert torch.equal(make(tiny_pipe, None, **embeds).frames, plain)
    assert not torch.equal(make(tiny_pipe, negative_prompt="a box").frames, plain)


def test_guidance_counts_and_defaults_to_the_pipelines(tiny_pipe: VideoGenPipeline, plain: Tensor) -> None:
    assert torch.equal(make(tiny_pipe, guidance_scale=tiny_pipe.config.guidance_scale).frames, plain)
    assert not torch.allclose(make(tiny_pipe, guidance_scale=1).frames, plain, atol=1e-3)
    assert not torch.equal(make(tiny_pipe, guidance_rescale=1.0).frames, plain)
    assert torch.equal(make(tiny_pipe, guidance_interval=(0, 0)).frames, make(tiny_pipe, guidance_scale=1).frames)
    without = {"use_reference": False, "num_inference_steps": {"base": 2}, "temporal_factor": 1}
    unguided = [make(tiny_pipe, guidance_scale=1, negative_prompt=text, **without).frames for text in ("", "a box")]
    torch.testing.assert_close(*unguided, **CLOSE)


def test_eta_counts_and_defaults_to_the_pipelines(tiny_pipe: VideoGenPipeline) -> None:
    def made(**options: Any) -> Tensor:
        return make(tiny_pipe, num_inference_steps=3, **options).frames

    assert torch.equal(made(eta=tiny_pipe.config.eta), made())
    found = made(eta=0.5)
    assert torch.equal(made(eta=0.5), found)
    assert not torch.allclose(made(eta=0.0), found, atol=1e-3)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_are_exchanged(tiny_pipe: VideoGenPipeline, name: str) -> None:
    """The model's eta counts only where the scheduler has one."""
    options = {key: tiny_pipe.config[key] for key in MINI_SAMPLING}
    assert options["eta"] > 0
    pipe = VideoGenPipeline(**{**tiny_pipe.components, "scheduler": other_scheduler(tiny_pipe.scheduler, name)}, **options)
    found = make(pipe, num_inference_steps=2).frames
    assert found.isfinite().all()
    assert torch.equal(make(pipe, num_inference_steps=2).frames, found)
    assert torch.equal(found, make(tiny_pipe, num_inference_steps=2).frames) == (name == "ddim")


def test_super_resolution_adds_details_as_the_model_says(tiny_pipe: VideoGenPipeline) -> None:
    """After a network's first step, and guided on their own."""

    def made(steps: int, **options: float) -> Tensor:
        pipe = VideoGenPipeline(**tiny_pipe.components, **options)
        counts = {"base": 1, "super_resolution_1": 1, "super_resolution_2": steps}
        return make(pipe, use_reference=False, num_inference_steps=counts, temporal_factor=1).frames

    details = made(3, details_from=0.4)
    assert not torch.equal(details, made(3))
    torch.testing.assert_close(made(1, details_from=0.4), made(1), rtol=0, atol=1e-4)
    assert not torch.equal(made(3, details_from=0.4, details_guidance_scale=5.0), details)


def test_the_base_network_is_guided_from_where_the_model_says_or_where_the_call_says(tiny_pipe: VideoGenPipeline) -> None:
    """The picture is given, so nothing else is guided."""

    def made(start: float, **options: Any) -> Tensor:
        pipe = VideoGenPipeline(**tiny_pipe.components, guidance_scale=4.0, base_guidance_from=start)
        picture = Image.new("RGB", (32, 32), (200, 30, 30))
        return make(pipe, image=picture, num_inference_steps={"base": 2}, temporal_factor=1, **options).frames

    always, noisiest, never = made(0.0), made(0.7), made(1.0)
    assert torch.equal(never, made(0.0, guidance_scale=1.0))
    assert not torch.equal(always, noisiest)
    assert not torch.equal(noisiest, never)
    assert torch.equal(made(1.0, guidance_interval=(0.0, 1.0)), always)
    assert torch.equal(made(1.0, guidance_interval=(0.7, 1.0)), noisiest)


def test_latents_may_be_decoded_later(tiny_pipe: VideoGenPipeline, plain: Tensor) -> None:
    latents = make(tiny_pipe, output_type="latent").frames
    assert torch.equal(make(tiny_pipe, None, latents=latents).frames, plain)
    again = make(tiny_pipe, latents=latents, fps=3)
    assert torch.equal(again.frames, plain)
    assert (again.fps, again.reference) == (3.0, None)


def test_saving_and_loading_changes_no_bit(tiny_pipe: VideoGenPipeline, plain: Tensor, tmp_path: Path) -> None:
    tiny_pipe.save_pretrained(tmp_path)
    loaded = VideoGenPipeline.from_pretrained(tmp_path)
    assert torch.equal(make(loaded).frames, plain)
    configs = [{key: value for key, value in pipe.config.items() if key[0] != "_"} for pipe in (loaded, tiny_pipe)]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_makes_the_video_of_float32(tiny_folder: Path, plain: Tensor, dtype: torch.dtype) -> None:
    """Tolerance: seen are 0.003 and 0.0004; another seed's video is 0.17 away."""
    found = make(VideoGenPipeline.from_pretrained(tiny_folder, dtype=dtype)).frames
    assert (found - plain).abs().mean() < 0.01
    assert found.isfinite().all()


def test_any_prompt_makes_a_video(tiny_pipe: VideoGenPipeline) -> None:
    assert make(tiny_pipe, "🎈 \0 \ud800").frames.isfinite().all()
    with pytest.warns(UserWarning, match="a prompt is longer than the 40 tokens the text encoder reads"):
        assert make(tiny_pipe, "x" * 10_000).frames.isfinite().all()


EMBEDS = torch.zeros(1, 4, TEXT)
BAD: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "the prompt is empty"),
    ({"prompt": [PROMPT, " \t"]}, "the prompt is empty"),
    ({"prompt": []}, "the prompt is empty"),
    ({"prompt": [PROMPT, None]}, "must be a text or a list of texts"),
    ({"negative_prompt": [None]}, "must be a text or a list of texts"),
    ({"prompt": None}, "give either prompt or prompt_embeds"),
    ({"prompt_embeds": EMBEDS}, "give either prompt or prompt_embeds"),
    ({"prompt": None, "prompt_embeds": EMBEDS}, "also needs negative_prompt_embeds"),
    ({"prompt": None, "prompt_embeds": EMBEDS, "negative_prompt_embeds": EMBEDS[:, 1:]}, "must both be"),
    ({"prompt": None, "prompt_embeds": EMBEDS[0], "negative_prompt_embeds": EMBEDS[0]}, "must both be"),
    ({"negative_prompt": ["a", "b"]}, "1 prompts but 2 negative prompts"),
    ({"num_videos_per_prompt": 0}, "num_videos_per_prompt must be at least 1"),
    ({"generator": []}, "0 generators for 1 videos"),
    ({"generator": generators(1, 2)}, "2 generators for 1 videos"),
    ({"height": 40}, "height and width must be multiples of 16, not 40 and 32"),
    ({"height": 0}, "height and width must be multiples of 16, not 0 and 32"),
    ({"width": -16}, "height and width must be multiples of 16"),
    ({"num_frames": 0}, "num_frames must be at least 1"),
    ({"temporal_factor": 3}, "the temporal factor must be"),
    ({"temporal_factor": 0}, "the temporal factor must be"),
    ({"fps": 0}, "fps between 0 and 1000"),
    ({"fps": float("nan")}, "fps between 0 and 1000"),
    ({"fps": float("inf")}, "fps between 0 and 1000"),
    ({"num_inference_steps": {"bass": 3}}, "num_inference_steps: bass=3; the stages and their steps are reference 1..1000"),
    ({"num_inference_steps": {"base": 0}}, "num_inference_steps: base=0"),
    ({"num_inference_steps": {"base": 2.5}}, "num_inference_steps: base=2.5"),
    ({"num_inference_steps": 0}, "num_inference_steps: reference=0"),
    ({"num_inference_steps": {"refiner": 501}}, "num_inference_steps: refiner=501"),
    ({"guidance_scale": float("nan")}, "the guidance scale must be a finite number"),
    ({"guidance_rescale": float("nan")}, "guidance_rescale must lie in 0..1"),
    ({"guidance_interval": (0.5, 0.2)}, "guidance_interval must be two fractions"),
    ({"eta": 1.0}, "eta must lie in 0..0.99, not 1.0"),
    ({"eta": float("nan")}, "eta must lie in 0..0.99"),
    ({"guidance_scale": -1}, "the guidance scale must be a finite number"),
    ({"output_type": "mp4"}, "output_type must be pil, np, pt or latent, not 'mp4'"),
    ({"image": "photo.png"}, "image must be a PIL image"),
    ({"image": []}, "image must be a PIL image"),
    ({"image": [Image.new("L", (4, 4))] * 2}, "2 reference images for 1 videos"),
    ({"image": torch.zeros(1, 3, 32, 48)}, "must be finite and .B, 3, 32, 32., not .1, 3, 32, 48."),
    ({"image": torch.zeros(3, 32, 32)}, "must be finite and"),
    ({"image": torch.full((1, 3, 32, 32), torch.nan)}, "must be finite and"),
    ({"image": Image.new("L", (4, 4)), "use_reference": False}, "use_reference=False takes no image"),
    ({"reference_model": "sd", "use_reference": False}, "takes no image and no reference_model"),
    ({"reference_model": "sd", "image": Image.new("L", (4, 4))}, "leave the image out"),
    (
        {"reference_model": "sd", "prompt": None, "prompt_embeds": EMBEDS, "negative_prompt_embeds": EMBEDS},
        "the prompt as text",
    ),
    ({"reference_model": "no/such/folder"}, "no/such/folder is no text-to-image pipeline of diffusers"),
    ({"latents": torch.zeros(5, 4, 8, 8)}, "latents must be finite and .N, F, 4, h, w., not .5, 4, 8, 8."),
    ({"latents": torch.zeros(1, 0, 4, 8, 8)}, "latents must be finite"),
    ({"latents": torch.full((1, 2, 4, 8, 8), torch.inf)}, "latents must be finite"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_input_is_refused_before_any_step(tiny_pipe: VideoGenPipeline, options: dict[str, Any], message: str) -> None:
    def never(*_: Any) -> dict[str, Any]:
        pytest.fail("a step was taken")

    with pytest.raises(UserError, match=message) as refused:
        make(tiny_pipe, **{"callback_on_step_end": never, **options})
    assert "\n" not in str(refused.value)


def test_a_part_that_is_left_out_is_missed_only_where_it_is_needed(tiny_folder: Path, tiny_pipe: VideoGenPipeline) -> None:
    parts = {name: part for name, part in tiny_pipe.components.items() if name not in ("unet", "refiner", "latent_flow")}
    pipe = VideoGenPipeline.from_pretrained(tiny_folder, **parts, unet=None, refiner=None, latent_flow=None)
    picture = Image.effect_noise((32, 32), 80)
    assert make(pipe, temporal_factor=1, image=picture).frames.shape == (1, 3, 3, 32, 32)
    with pytest.raises(UserError, match="no text-to-image network: give an image, or use_reference=False"):
        make(pipe, temporal_factor=1)
    with pytest.raises(UserError, match="no latent_flow or no refiner: use temporal_factor=1"):
        make(pipe, image=picture)
