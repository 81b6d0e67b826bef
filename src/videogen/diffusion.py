"""Diffusion as pure functions over diffusers' schedulers: noising, prediction types, sampling (4.1: "unchanged" from SD).

A scheduler is only read here: sampling works on a copy, so one scheduler serves all networks and calls.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from videogen.config import Guidance, UserError

Predict = Callable[[Tensor, Tensor], Tensor]
"""(noisy (B, ...), timestep (B,)) -> the network's output, of the scheduler's prediction type."""


def randn(shape: tuple[int, ...], generators: list[torch.Generator], like: Tensor | None = None) -> Tensor:
    """Standard normal (B, ...), sample i from `generators[i]` alone, so that a sample never depends on its batch.

    The result has dtype and device of `like` (default float32 on the CPU); it is drawn on each generator's device in float32.
    """
    if shape[0] != len(generators):
        raise ValueError(f"{len(generators)} generators for a batch of {shape[0]}: give one a sample")
    noise = torch.stack([torch.randn(shape[1:], generator=generator, device=generator.device) for generator in generators])
    return noise if like is None else noise.to(like)


def video_noise(shape: tuple[int, ...], generators: list[torch.Generator], shared: float, like: Tensor | None = None) -> Tensor:
    """Noise (B, F, ...) of which a share `shared` of the variance (0..1) is common to all frames of a video.

    The mixed noise of PYoCo (Ge et al. 2023, section 4.1; its alpha^2 / (1 + alpha^2) is `shared`). Each frame alone is
    standard normal, so an image network still fits; 0 is independent noise, as the paper has it.
    """
    own = randn(shape, generators, like)
    if shared == 0:
        return own
    common = randn((shape[0], 1, *shape[2:]), generators, like)
    return math.sqrt(shared) * common + math.sqrt(1 - shared) * own


def add_noise(scheduler: Any, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """q(x_t | x_0): sqrt(abar_t) clean + sqrt(1 - abar_t) noise (DDPM, equation 4). Tensors (B, ...), timesteps (B,).

    For any scheduler: its own `add_noise` may work in other units (Euler's does), the networks are trained in these.
    """
    signal, sigma = signal_and_noise(scheduler, timesteps, clean)
    return signal * clean + sigma * noise


def training_target(scheduler: Any, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the network must output at x_t, by the scheduler's prediction type: the noise, v (Salimans and Ho 2022), or x_0."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        signal, sigma = signal_and_noise(scheduler, timesteps, clean)
        return signal * noise - sigma * clean
    if kind == "sample":
        return clean
    raise ValueError(f"unknown prediction type {kind!r}")


def signal_and_noise(scheduler: Any, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """(sqrt(abar_t), sqrt(1 - abar_t)), each shaped (B, 1, ...) to multiply `like` (B, ...)."""
    abar = scheduler.alphas_cumprod.to(device=like.device, dtype=like.dtype)[timesteps.to(like.device)]
    abar = abar.view(-1, *[1] * (like.ndim - 1))
    return abar.sqrt(), (1 - abar).sqrt()


def predict_clean(scheduler: Any, noisy: Tensor, output: Tensor, timesteps: Tensor) -> Tensor:
    """x_0 from the network's output at x_t. With noise prediction, undefined where abar_t = 0."""
    signal, sigma = signal_and_noise(scheduler, timesteps, noisy)
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return (noisy - sigma * output) / signal
    if kind == "v_prediction":
        return signal * noisy - sigma * output
    if kind == "sample":
        return output
    raise ValueError(f"unknown prediction type {kind!r}")


def output_for(scheduler: Any, noisy: Tensor, clean: Tensor, timesteps: Tensor) -> Tensor:
    """The network's output at x_t that says that x_0 is `clean`: what `predict_clean` undoes. Undefined where abar_t = 1."""
    signal, sigma = signal_and_noise(scheduler, timesteps, noisy)
    return training_target(scheduler, clean, (noisy - signal * clean) / sigma, timesteps)


def counted_from(predict: Predict, scheduler: Any, known: Tensor, error: float | None) -> Predict:
    """`predict`, whose output counts from what is known without it (ours), as outputs usually count: in training and sampling.

    known: about x_0 (B, ...), `error` the variance by which x_0 differs from it. The noisy sample shows x_0 as well; the best
    linear guess weighs both by their errors. A network whose last layer starts at zero starts as that guess, and learns what is
    wrong in it instead of copying what is right: a network that has to copy leaves grain and blur (docs/log.md). error None:
    the output counts from nothing, as Stable Diffusion's does.
    """
    if error is None:
        return predict

    def counted(noisy: Tensor, timestep: Tensor) -> Tensor:
        at = timestep.round().long()  # some schedulers count in fractions
        signal, sigma = signal_and_noise(scheduler, at, noisy)
        guess = (sigma**2 * known + error * signal * noisy) / (sigma**2 + error * signal**2)
        return output_for(scheduler, noisy, guess, at) + predict(noisy, timestep)

    return counted


def random_timesteps(
    scheduler: Any,
    generators: list[torch.Generator],
    device: torch.device,
    high_noise: float = 1.0,
    strength: float = 1.0,
) -> Tensor:
    """One training timestep a sample, 1 - u ** high_noise of the last `strength` of the schedule for uniform u; int64 (B,).

    high_noise: 1 is uniform, as in Stable Diffusion; above 1 the noisy end is seen more often. strength: as in `sample`, for a
    network that only ever begins there.
    """
    steps = round(strength * scheduler.config.num_train_timesteps)
    uniform = torch.stack([torch.rand((), generator=generator, dtype=torch.float64) for generator in generators])
    return ((1 - uniform**high_noise) * steps).long().clamp(max=steps - 1).to(device)


def guided(predict: Callable[[Tensor, Tensor, slice], Tensor], guidance: Guidance, schedule: int) -> Predict:
    """Classifier-free guidance as one batch. schedule: number of training timesteps.

    `predict(noisy, timestep, rows)` takes a doubled batch, first half without the prompt, second half with it: rows = all of
    it, or only the second half where nothing is guided. The result takes a single batch.
    """

    def needed(timestep: Tensor) -> bool:
        if guidance.scale == 1 or guidance.interval == (0, 1):  # without asking the device for its timestep
            return guidance.scale != 1
        return guidance.interval[0] * schedule <= float(timestep[0]) <= guidance.interval[1] * schedule

    def combined(noisy: Tensor, timestep: Tensor) -> Tensor:
        batch = len(noisy)
        if not needed(timestep):
            return predict(noisy, timestep, slice(batch, None))
        twice = torch.cat([noisy, noisy]), torch.cat([timestep, timestep])
        without, with_prompt = predict(*twice, slice(None)).chunk(2)
        told = with_prompt - without
        if math.isfinite(guidance.limit):  # channels are the third from last
            told = told * (guidance.limit / told.norm(dim=-3, keepdim=True).clamp(min=guidance.limit))
            output = with_prompt + (guidance.scale - 1) * told
        else:
            output = without + guidance.scale * told
        if guidance.rescale:
            inner = tuple(range(1, output.ndim))
            ratio = with_prompt.std(inner, keepdim=True) / output.std(inner, keepdim=True)
            output = output * (guidance.rescale * ratio + (1 - guidance.rescale))
        return output

    return combined


@torch.no_grad()
def sample(
    predict: Predict,
    noise: Tensor,
    scheduler: Any,
    num_steps: int,
    *,
    generators: list[torch.Generator] | None = None,
    eta: float = 0.0,
    shared_noise: float = 0.0,
    start: Tensor | None = None,
    strength: float = 1.0,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Run the reverse process with exactly `num_steps` calls of `predict` and return x_0 (B, ...).

    noise: standard normal (B, ...). start, strength: begin from `start` noised to the fraction `strength` (0 < strength <= 1)
    of the schedule instead of from pure noise (SDEdit, Meng et al. 2022). generators: one a sample, for stochastic schedulers
    and for `eta`, which counts for nothing without them. eta: share of the noise that DDIM draws anew in each step (Song et
    al. 2021, equation 16), 0 <= eta < 1, with frames sharing `shared_noise` of it (see `video_noise`). on_step(i, timestep) is
    called after step i. Works with any diffusers scheduler of one call a step; raises UserError on others (PNDM, Heun), with
    `eta` on those that have none, and where `strength` leaves fewer than `num_steps` timesteps.
    """
    if num_steps < 1 or not 0 < strength <= 1:
        raise ValueError(f"num_steps must be >= 1 and 0 < strength <= 1, got {num_steps} and {strength}")
    if eta and not has_eta(scheduler):
        raise UserError(f"{type(scheduler).__name__} has no eta: set it to 0, or use DDIM")
    whole = max(num_steps, round(num_steps / strength)) if start is not None else num_steps
    scheduler = _scheduled(scheduler, whole, num_steps, strength if start is not None else 1.0, noise.device)
    timesteps = scheduler.timesteps[-num_steps:]
    if start is None:
        latents = noise * scheduler.init_noise_sigma
    else:
        latents = scheduler.add_noise(start, noise, timesteps[:1].expand(len(noise)))
    extra: dict[str, Any] = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for index, timestep in enumerate(timesteps):
        model_input = scheduler.scale_model_input(latents, timestep)
        output = predict(model_input, timestep.expand(len(latents)))
        if eta and generators is not None:
            extra = {"eta": eta, "variance_noise": video_noise(tuple(latents.shape), generators, shared_noise, latents)}
        latents = scheduler.step(output, timestep, latents, **extra).prev_sample
        if on_step is not None:
            on_step(index, timestep)
    return latents


def has_eta(scheduler: Any) -> bool:
    """Whether a scheduler can draw part of the noise anew in each step, as DDIM does."""
    return inspect.signature(scheduler.step).parameters.keys() >= {"eta", "variance_noise"}


def _scheduled(scheduler: Any, whole: int, num_steps: int, strength: float, device: torch.device) -> Any:
    """A copy that is set to `whole` timesteps, to begin at the last `num_steps` of them. Raises UserError."""
    scheduler = copy.deepcopy(scheduler)
    if whole > scheduler.config.num_train_timesteps:
        schedule = scheduler.config.num_train_timesteps
        fitting = int(schedule * strength)
        raise UserError(f"at most {fitting} steps fit into the last {strength:g} of a schedule of {schedule}, not {num_steps}")
    try:
        scheduler.set_timesteps(whole, device=device)
    except ValueError as error:  # LCM takes no more steps than it was distilled with
        raise UserError(f"{type(scheduler).__name__} cannot take {whole} steps: {str(error).splitlines()[0]}") from None
    if len(scheduler.timesteps) != whole:
        name, calls = type(scheduler).__name__, len(scheduler.timesteps)
        raise UserError(f"{name} makes {calls} calls for {whole} steps; use a scheduler that makes one a step, such as DDIM")
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(whole - num_steps)
    return scheduler
