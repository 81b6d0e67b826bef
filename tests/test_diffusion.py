"""Diffusion as pure functions over diffusers' schedulers: round trips, samplers on a distribution with a known solution."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from tiny import generators, randn
from videogen import diffusion
from videogen.config import MAX_ETA, Guidance, UserError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers' Euler and others

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TYPES = ("epsilon", "v_prediction", "sample")
MEAN, SPREAD = 0.7, 0.4  # of the data that the analytic denoiser knows


def ddim(**options: Any) -> DDIMScheduler:
    return DDIMScheduler(**SD, clip_sample=False, timestep_spacing="trailing", **options)


def exact(scheduler: Any, kind: str = "epsilon") -> diffusion.Predict:
    """What a perfect network outputs where the data are N(MEAN, SPREAD^2), elementwise.

    x_t = a x_0 + s n is jointly Gaussian with x_0, so E[x_0 | x_t] = m + a d^2 / (a^2 d^2 + s^2) (x_t - a m), and the rest
    follows from x_t = a x_0 + s n and v = a n - s x_0.
    """
    table = scheduler.alphas_cumprod.double()

    def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
        abar = table[timestep.round().long()].view(-1, *[1] * (noisy.ndim - 1)).to(noisy)
        signal, sigma = abar.sqrt(), (1 - abar).sqrt()
        clean = MEAN + signal * SPREAD**2 / (abar * SPREAD**2 + 1 - abar) * (noisy - signal * MEAN)
        noise = (noisy - signal * clean) / sigma
        return {"epsilon": noise, "v_prediction": signal * noise - sigma * clean, "sample": clean}[kind]

    return predict


@pytest.mark.parametrize("kind", TYPES)
def test_the_clean_sample_comes_back_from_what_the_network_should_output(kind: str) -> None:
    scheduler = ddim(prediction_type=kind)
    clean, noise = randn(5, 3, 4, dtype=torch.float64), randn(5, 3, 4, seed=1, dtype=torch.float64)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    timesteps = torch.tensor([0, 1, 250, 500, 999])
    noisy = diffusion.add_noise(scheduler, clean, noise, timesteps)
    target = diffusion.training_target(scheduler, clean, noise, timesteps)
    found = diffusion.predict_clean(scheduler, noisy, target, timesteps)
    torch.testing.assert_close(found, clean, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", TYPES)
def test_an_output_says_the_clean_sample_that_it_was_made_for(kind: str) -> None:
    scheduler, timesteps = ddim(prediction_type=kind), torch.tensor([1, 250, 999])
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    clean, noisy = randn(3, 3, 4, dtype=torch.float64), randn(3, 3, 4, seed=1, dtype=torch.float64)
    output = diffusion.output_for(scheduler, noisy, clean, timesteps)
    torch.testing.assert_close(diffusion.predict_clean(scheduler, noisy, output, timesteps), clean)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("timestep", [20, 250, 999])
def test_a_network_that_says_nothing_knows_more_than_what_is_known_and_the_noisy_sample_each(kind: str, timestep: int) -> None:
    scheduler, at, error = ddim(prediction_type=kind), torch.tensor([timestep]), 0.05
    known, noise = randn(1, 20_000), randn(1, 20_000, seed=1)
    clean = known + error**0.5 * randn(1, 20_000, seed=2)
    noisy = diffusion.add_noise(scheduler, clean, noise, at)
    signal, sigma = diffusion.signal_and_noise(scheduler, at, clean)
    silent = diffusion.counted_from(lambda x, t: torch.zeros_like(x), scheduler, known, error)
    found = (diffusion.predict_clean(scheduler, noisy, silent(noisy, at), at) - clean).square().mean().item()
    alone = (error, (sigma / signal).square().item())
    assert found == pytest.approx(1 / sum(1 / each for each in alone), rel=0.05)  # of two independent measurements
    assert found < 1.01 * min(alone)


def test_noising_follows_equation_4() -> None:
    scheduler, clean, noise, timesteps = ddim(), randn(2, 3, 4), randn(2, 3, 4, seed=1), torch.tensor([10, 900])
    signal, sigma = diffusion.signal_and_noise(scheduler, timesteps, clean)
    assert signal.shape == (2, 1, 1)
    torch.testing.assert_close(signal.square() + sigma.square(), torch.ones(2, 1, 1))
    torch.testing.assert_close(diffusion.add_noise(scheduler, clean, noise, timesteps), signal * clean + sigma * noise)


def test_an_unknown_prediction_type_is_refused() -> None:
    scheduler, x, timesteps = ddim(prediction_type="flow"), randn(1, 2), torch.tensor([3])
    with pytest.raises(ValueError, match="unknown prediction type 'flow'"):
        diffusion.training_target(scheduler, x, x, timesteps)
    with pytest.raises(ValueError, match="unknown prediction type 'flow'"):
        diffusion.predict_clean(scheduler, x, x, timesteps)


SCHEDULERS = {
    "DDIM": ddim(set_alpha_to_one=True),
    "DPM-Solver++": DPMSolverMultistepScheduler(**SD),
    "UniPC": UniPCMultistepScheduler(**SD),
    "Euler": EulerDiscreteScheduler(**SD),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_perfect_denoiser_samples_the_distribution_it_knows(name: str) -> None:
    """Tolerances: 3 standard errors of 20,000 draws are 0.02 spreads; the rest is left to the solver's own error and to
    SD's schedule, whose last step still holds 7% signal while the sampler begins with none."""
    scheduler = SCHEDULERS[name]
    drawn = diffusion.sample(exact(scheduler), randn(2, 10_000, dtype=torch.float64), scheduler, 100)
    assert drawn.mean().item() == pytest.approx(MEAN, abs=0.05)
    assert drawn.std().item() == pytest.approx(SPREAD, rel=0.05)


ZERO_SNR = ddim(prediction_type="v_prediction", rescale_betas_zero_snr=True, set_alpha_to_one=True)  # as mini's
BY_CONVENTION = {
    "DDIM": DDIMScheduler,
    "DPM-Solver++": DPMSolverMultistepScheduler,
    "UniPC": UniPCMultistepScheduler,
    "Euler": EulerDiscreteScheduler,
}


@pytest.mark.parametrize("start", [False, True], ids=["from noise", "from a start"])
@pytest.mark.parametrize("name", BY_CONVENTION)
def test_schedulers_are_exchanged_by_diffusers_convention_at_zero_terminal_snr(name: str, start: bool) -> None:
    """Nothing of the signal is left in the noise here: the mean is exact, the spread as good as a first-order step is.

    125 and 250 divide 1000: diffusers' DDIM steps by the whole part of 1000 / steps, and ends off its mark otherwise."""
    scheduler = BY_CONVENTION[name].from_config(ZERO_SNR.config)
    assert scheduler.alphas_cumprod[-1] < 1e-6
    given = {"start": MEAN + SPREAD * randn(2, 10_000, seed=1, dtype=torch.float64), "strength": 0.5} if start else {}
    predict = exact(ZERO_SNR, "v_prediction")
    drawn = diffusion.sample(predict, randn(2, 10_000, dtype=torch.float64), scheduler, 125, **given)
    assert drawn.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert drawn.std().item() == pytest.approx(SPREAD, rel=0.05)


@pytest.mark.parametrize("eta", [0.5, 0.9, MAX_ETA])
def test_noise_drawn_anew_leaves_the_distribution_as_it_is(eta: float) -> None:
    """Frames that share a part of their noise at the start share it of what is drawn anew too.

    500 steps: a step that draws anew narrows the distribution by its second order (at 125 steps by 6%)."""
    noise = diffusion.video_noise((2, 4, 5_000), generators(3, 4), 0.8, torch.zeros((), dtype=torch.float64))
    options = {"generators": generators(1, 2), "eta": eta, "shared_noise": 0.8}
    drawn = diffusion.sample(exact(ZERO_SNR, "v_prediction"), noise, ZERO_SNR, 500, **options)
    assert drawn.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert drawn.std().item() == pytest.approx(SPREAD, rel=0.05)
    together = torch.corrcoef(drawn[0])[0, 1].item()
    assert together == pytest.approx(0.8, abs=0.03)
    again = diffusion.sample(
        exact(ZERO_SNR, "v_prediction"), noise[1:], ZERO_SNR, 500, **{**options, "generators": generators(2)}
    )
    torch.testing.assert_close(again, drawn[1:], rtol=0, atol=1e-12)  # a sample does not depend on its batch


def test_eta_is_refused_by_schedulers_without_it() -> None:
    with pytest.raises(UserError, match="EulerDiscreteScheduler has no eta"):
        diffusion.sample(exact(SCHEDULERS["Euler"]), randn(1, 8), SCHEDULERS["Euler"], 4, generators=generators(1), eta=0.5)


def consistency(scheduler: Any) -> diffusion.Predict:
    """What a perfectly distilled network outputs (noise prediction): the end of the probability flow through x_t.

    For N(MEAN, SPREAD^2) it keeps the place within the distribution: x_0 = m + d (x_t - a m) / sqrt(a^2 d^2 + s^2).
    """
    table = scheduler.alphas_cumprod.double()

    def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
        abar = table[timestep.long()].view(-1, 1)
        place = (noisy - abar.sqrt() * MEAN) / (abar * SPREAD**2 + 1 - abar).sqrt()
        return (noisy - abar.sqrt() * (MEAN + SPREAD * place)) / (1 - abar).sqrt()

    return predict


@pytest.mark.parametrize("given", [{}, {"start": MEAN, "strength": 0.5}], ids=["from noise", "from a start"])
def test_lcm_samples_the_distribution_that_its_network_was_distilled_for(given: dict[str, Any]) -> None:
    """From a start too narrow, the renoising between steps widens it: half-way only the mean is sure."""
    scheduler = LCMScheduler.from_config(SCHEDULERS["DDIM"].config)
    noise = randn(2, 10_000, dtype=torch.float64)
    options = {**given, "start": torch.full_like(noise, MEAN)} if given else {}
    drawn = diffusion.sample(consistency(scheduler), noise, scheduler, 4, generators=generators(1, 2), **options)
    assert drawn.mean().item() == pytest.approx(MEAN, abs=0.05)
    assert drawn.std().item() == pytest.approx(SPREAD, rel=0.3 if given else 0.05)


def test_steps_that_a_scheduler_refuses_are_told_in_one_line() -> None:
    with pytest.raises(UserError, match="LCMScheduler cannot take 60 steps") as refused:
        diffusion.sample(lambda x, t: x, randn(1, 2), LCMScheduler(**SD), 60)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", BY_CONVENTION)
def test_training_noises_as_ddim_does_whichever_scheduler_samples(name: str) -> None:
    clean, noise, timesteps = randn(3, 2, 4), randn(3, 2, 4, seed=1), torch.tensor([3, 500, 900])
    reference = ddim(prediction_type="v_prediction")
    scheduler = BY_CONVENTION[name].from_config(reference.config)
    noisy = diffusion.add_noise(scheduler, clean, noise, timesteps)
    assert torch.equal(noisy, reference.add_noise(clean, noise, timesteps))
    target = diffusion.training_target(scheduler, clean, noise, timesteps)
    assert torch.equal(target, reference.get_velocity(clean, noise, timesteps))


@pytest.mark.parametrize("kind", TYPES)
def test_the_prediction_type_does_not_change_the_sample(kind: str) -> None:
    noise = randn(2, 50, dtype=torch.float64)
    expected = diffusion.sample(exact(ddim()), noise, ddim(), 10)
    scheduler = ddim(prediction_type=kind)
    torch.testing.assert_close(diffusion.sample(exact(scheduler, kind), noise, scheduler, 10), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_starting_from_a_sample_keeps_the_distribution_and_stays_near(name: str) -> None:
    scheduler = SCHEDULERS[name]
    start = MEAN + SPREAD * randn(2, 10_000, dtype=torch.float64)
    noise = randn(2, 10_000, seed=1, dtype=torch.float64)
    drawn = diffusion.sample(exact(scheduler), noise, scheduler, 40, start=start, strength=0.4)
    assert drawn.mean().item() == pytest.approx(MEAN, abs=0.05)
    assert drawn.std().item() == pytest.approx(SPREAD, rel=0.08)
    near, far = (
        diffusion.sample(exact(scheduler), noise, scheduler, 20, start=start, strength=strength) - start
        for strength in (0.1, 1.0)
    )
    assert near.std() < 0.7 * far.std()


@pytest.mark.parametrize("strength", [1.0, 0.8, 0.5, 0.3])
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_sample_takes_exactly_its_steps(name: str, steps: int, strength: float) -> None:
    scheduler, calls, told = SCHEDULERS[name], list[Tensor](), list[tuple[int, float]]()
    before = copy.deepcopy(vars(scheduler))

    def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
        calls.append(timestep)
        return noisy

    diffusion.sample(
        predict, randn(3, 4), scheduler, steps, start=randn(3, 4), strength=strength,
        on_step=lambda index, timestep: told.append((index, float(timestep))),
    )  # fmt: skip
    assert [timestep.shape for timestep in calls] == [(3,)] * steps
    assert told == [(index, float(timestep[0])) for index, timestep in enumerate(calls)]
    assert sorted(told, key=lambda item: -item[1]) == told
    assert float(calls[0][0]) <= 1000 * strength + 1000 / steps  # what cannot be had in so few steps is rounded
    assert str(vars(scheduler)) == str(before)  # the scheduler itself was only read


def test_strength_counts_only_with_a_start() -> None:
    noise, scheduler = randn(2, 3), SCHEDULERS["DDIM"]
    whole = diffusion.sample(exact(scheduler), noise, scheduler, 4)
    assert torch.equal(diffusion.sample(exact(scheduler), noise, scheduler, 4, strength=0.5), whole)


@pytest.mark.parametrize("name", [*SCHEDULERS, "Euler ancestral"])
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    scheduler = {**SCHEDULERS, "Euler ancestral": EulerAncestralDiscreteScheduler(**SD)}[name]
    seeds = (4, 5, 6)

    def run(*seeds: int) -> Tensor:
        sources = generators(*seeds)
        noise = diffusion.randn((len(seeds), 2, 3), sources)
        return diffusion.sample(exact(scheduler), noise, scheduler, 6, generators=sources)

    assert torch.equal(run(*seeds), torch.cat([run(seed) for seed in seeds]))


def test_schedulers_of_more_than_one_call_a_step_are_refused() -> None:
    with pytest.raises(UserError, match=r"PNDMScheduler makes 5 calls for 4 steps; .* such as DDIM"):
        diffusion.sample(lambda x, t: x, randn(1, 2), PNDMScheduler(**SD, skip_prk_steps=True), 4)


def test_impossible_steps_and_strengths_are_refused() -> None:
    for options in ({"num_steps": 0}, {"num_steps": 3, "strength": 0.0}, {"num_steps": 3, "strength": 1.1}):
        with pytest.raises(ValueError, match="num_steps must be >= 1 and 0 < strength <= 1"):
            diffusion.sample(lambda x, t: x, randn(1, 2), ddim(), start=randn(1, 2), **options)
    with pytest.raises(UserError, match=r"at most 500 steps fit into the last 0.5 of a schedule of 1000"):
        diffusion.sample(lambda x, t: x, randn(1, 2), ddim(), 501, start=randn(1, 2), strength=0.5)


def both(noisy: Tensor, timestep: Tensor, rows: slice) -> Tensor:
    """A network of two samples: without the prompt one more than its input, with it the timestep's multiple."""
    if rows == slice(2, None):  # nothing is guided: the prompt's half alone
        assert timestep.tolist() == [7, 8]
        return noisy * timestep[:, None]
    assert rows == slice(None)
    assert timestep.tolist() == [7, 8, 7, 8]
    assert torch.equal(noisy[:2], noisy[2:])
    return torch.cat([noisy[:2] + 1, noisy[:2] * timestep[:2, None]])


def test_guidance_of_1_is_conditional_and_of_0_is_unconditional() -> None:
    x, timestep = randn(2, 3, dtype=torch.float64), torch.tensor([7, 8])
    without, with_prompt = x + 1, x * timestep[:, None]
    assert torch.equal(diffusion.guided(both, Guidance(0.0), 10)(x, timestep), without)
    assert torch.equal(diffusion.guided(both, Guidance(1.0), 10)(x, timestep), with_prompt)
    found = diffusion.guided(both, Guidance(3.0), 10)(x, timestep)
    torch.testing.assert_close(found, 3 * with_prompt - 2 * without)


def test_rescaled_guidance_keeps_the_spread_of_what_the_prompt_alone_gives() -> None:
    x, timestep = randn(2, 30, dtype=torch.float64), torch.tensor([7, 8])
    plain, half, whole = (diffusion.guided(both, Guidance(3.0, rescale), 10)(x, timestep) for rescale in (0.0, 0.5, 1.0))
    torch.testing.assert_close(whole.std(1), (x * timestep[:, None]).std(1))
    torch.testing.assert_close(half, (plain + whole) / 2)
    assert (plain.std(1) > whole.std(1) + 1).all()


def test_limited_guidance_says_no_more_in_a_place_than_its_limit() -> None:
    x, timestep = randn(2, 4, 3, 3), torch.tensor([7, 8])

    def said(noisy: Tensor, timestep: Tensor, rows: slice) -> Tensor:
        return torch.cat([noisy[:2], noisy[:2] * timestep[:2, None, None, None]])

    with_prompt = x * timestep[:, None, None, None]
    own = (with_prompt - x).norm(dim=1)
    limit = own.median().item()
    found = diffusion.guided(said, Guidance(3.0, limit=limit), 10)(x, timestep)
    torch.testing.assert_close((found - with_prompt).norm(dim=1), 2 * own.clamp(max=limit))
    free = diffusion.guided(said, Guidance(3.0), 10)(x, timestep)
    below = (own < limit)[:, None].expand_as(x)
    torch.testing.assert_close(found[below], free[below])
    with pytest.raises(UserError, match=r"the limit of guidance must be more than 0, not 0.0"):
        Guidance(3.0, limit=0.0)


def test_outside_its_interval_guidance_follows_the_prompt_alone() -> None:
    x, timestep = randn(2, 3, dtype=torch.float64), torch.tensor([7, 8])
    everywhere = diffusion.guided(both, Guidance(3.0), 10)(x, timestep)
    for interval, inside in (((0.0, 1.0), True), ((0.6, 0.8), True), ((0.8, 1.0), False), ((0.0, 0.6), False)):
        found = diffusion.guided(both, Guidance(3.0, interval=interval), 10)(x, timestep)
        assert torch.equal(found, everywhere if inside else x * timestep[:, None])


def test_noise_is_each_generators_own() -> None:
    noise = diffusion.randn((2, 3, 4), generators(1, 2))
    assert torch.equal(noise[1:], diffusion.randn((1, 3, 4), generators(2)))
    assert diffusion.randn((1, 2), generators(0), like=torch.zeros(1, dtype=torch.float16)).dtype == torch.float16
    with pytest.raises(ValueError, match="2 generators for a batch of 3"):
        diffusion.randn((3, 4), generators(1, 2))


@pytest.mark.parametrize("shared", [0.0, 0.3, 1.0])
def test_frames_share_the_asked_part_of_their_noise(shared: float) -> None:
    """Tolerance: four standard errors of 20,000 draws."""
    noise = diffusion.video_noise((2, 3, 20_000), generators(1, 2), shared)
    for video in noise:
        moments = torch.cov(video)
        torch.testing.assert_close(moments, torch.eye(3) * (1 - shared) + shared, rtol=0, atol=0.03)
    assert torch.equal(noise[1:], diffusion.video_noise((1, 3, 20_000), generators(2), shared))
    assert torch.corrcoef(noise[:, 0])[0, 1].abs() < 0.03  # nothing is shared between videos


def test_training_timesteps_cover_the_schedule_and_are_each_generators_own() -> None:
    cpu, scheduler = torch.device("cpu"), ddim()
    drawn = diffusion.random_timesteps(scheduler, generators(*range(400)), cpu)
    assert (drawn.dtype, drawn.shape) == (torch.int64, (400,))
    assert 0 <= drawn.min() < 20
    assert 980 < drawn.max() < 1000
    assert torch.equal(drawn[7:8], diffusion.random_timesteps(scheduler, generators(7), cpu))


def test_training_can_dwell_on_the_noisy_end() -> None:
    drawn = diffusion.random_timesteps(ddim(), generators(*range(2000)), torch.device("cpu"), high_noise=3.0)
    assert 0 <= drawn.min() < drawn.max() == 999
    assert abs((drawn >= 875).float().mean() - 0.5) < 0.04  # 1 - u ** 3 has its median at 7/8


def test_training_can_keep_to_the_last_part_of_the_schedule() -> None:
    drawn = diffusion.random_timesteps(ddim(), generators(*range(400)), torch.device("cpu"), strength=0.5)
    assert 0 <= drawn.min() < 20
    assert 480 < drawn.max() < 500
