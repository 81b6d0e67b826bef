"""The one loop that trains every network (section 3.5). What is learnt, and by which network, is the objective's matter.

A step is a pure function of the state before it and of (seed, step): clips, crops, noise and dropout are seeded from those,
so a run that was interrupted and taken up again equals one that was not, bit for bit, and clip j of a step sees the same
randomness in any micro-batch and on any rank.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sys
import time
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from videogen.config import LoopConfig, OptimizerConfig, TrainConfig, UserError
from videogen.data.clips import ClipBatch, ClipSource, ReadyBatch
from videogen.data.loader import clip_source, derive_seed, first_clips, load_batches
from videogen.models.adapters import add_trained_adapter
from videogen.training.checkpoint import (
    TrainState,
    check_recipe,
    export_network,
    find_checkpoint,
    load_checkpoint,
    read_export,
    save_checkpoint,
    write_recipe,
)
from videogen.training.distributed import Ranks, StopRequest, ranks
from videogen.training.kept import load_kept, make_kept
from videogen.training.objectives import Objective
from videogen.training.optimizers import Optimizer
from videogen.training.precision import precision_of
from videogen.training.progress import Progress

_PREVIEW_CLIPS = 4
_FINISHING_CLIPS = 64


def train(config: TrainConfig, output: Path) -> None:
    """Train what `config` says in the run folder `output`, from its newest checkpoint if there is one.

    Writes recipe.json, kept/ (of `data.kept`), checkpoints/, log.jsonl, tensorboard/, previews/ and at the end network/ (the
    averaged weights). A run that has finished already is left as it is. Raises UserError on bad input, and SystemExit(143 or
    130), after a checkpoint, when SIGTERM or Ctrl-C asks the run to stop.
    """
    from videogen.training.objectives import build_objective

    if _finished(config, output):
        return
    data = config.data
    if data.source.startswith("."):
        data = dataclasses.replace(data, source=os.path.normpath(output / data.source))
    torch.manual_seed(config.loop.seed)  # a companion is made with the objective
    run(config, build_objective(config, output), clip_source(data, config.loop.seed), output)


def run(config: TrainConfig, objective: Objective, source: ClipSource, output: Path) -> None:
    """`train` with an objective and a source of clips at hand."""
    if _finished(config, output):
        return
    loop = config.loop
    if loop.threads is not None:
        torch.set_num_threads(loop.threads)
    with StopRequest() as stop, ranks(loop.device) as place:
        share = _share(loop, place)
        state = _start(config, objective, place.device)
        newest = find_checkpoint(output / "checkpoints", partial(_say, place))
        if newest is not None:
            load_checkpoint(newest, state, config)
            _say(place, f"{output.name}: going on after step {state.step}")
        place.wait()  # nothing is written before every rank has read
        if place.first:
            write_recipe(config, output)
        module: nn.Module = _Loss(objective, state)
        if place.size > 1:
            module = DistributedDataParallel(module, find_unused_parameters=True, gradient_as_bucket_view=True)
        view = partial(_preview, config, objective, source, output)
        steps = range(state.step, loop.steps)
        saved = state.step if newest is not None else -1
        if config.data.kept is not None and not make_kept(config, objective, source, output / "kept", place, stop):
            _say(place, f"{output.name}: stopped; the same command goes on with the clips that are missing")
            raise SystemExit(stop.exit_code)
        clock = time.perf_counter() - state.seconds
        batches = _batches(config, source, output, steps, share)
        with contextlib.closing(batches), Progress(output, loop, state.step, quiet=not place.first) as log:
            for step, clips in zip(steps, batches, strict=True):
                facts, stopping = _advance(config, module, state, clips.to(place.device), place, share, stop)
                state.step, state.seconds = step + 1, time.perf_counter() - clock
                log.write(state.step, {**facts, "seconds": round(state.seconds, 3)})
                last = state.step == loop.steps
                if place.first and (last or stopping or state.step % loop.save_every == 0):
                    save_checkpoint(state, config, output / "checkpoints", keep=loop.keep_checkpoints)
                    saved = state.step
                if place.first and loop.preview_every and (last or state.step % loop.preview_every == 0) and not stopping:
                    view(state, place.device)
                if stopping and not last:
                    place.wait()
                    _say(place, f"{output.name}: stopped after step {saved}; the same command goes on from there")
                    raise SystemExit(stop.exit_code)
        if place.first:
            _export(config, objective, source, state, output)
        place.wait()
        if stop.signal:
            raise SystemExit(stop.exit_code)


def learning_rate(optimizer: OptimizerConfig, steps: int, step: int) -> float:
    """The rate of step `step` (from 0) of `steps`: a linear rise over `warmup_steps`, then half a cosine to the final rate."""
    peak, final = optimizer.learning_rate, optimizer.final_learning_rate
    if step < optimizer.warmup_steps:
        return peak * (step + 1) / optimizer.warmup_steps
    part = (step - optimizer.warmup_steps) / max(1, steps - optimizer.warmup_steps)
    return final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, part)))


def ema_decay(limit: float, step: int) -> float:
    """The share of the average that step `step` (from 0) keeps: (1 + n) / (10 + n), at most `limit`."""
    return min(limit, (1 + step) / (10 + step))


@torch.no_grad()
def update_ema(ema: dict[str, Tensor], network: nn.Module, decay: float) -> None:
    """ema = decay * ema + (1 - decay) * weights, in float32."""
    weights = dict(network.named_parameters())
    for name, average in ema.items():
        average.lerp_(weights[name].float(), 1.0 - decay)


@contextlib.contextmanager
def averaged(state: TrainState) -> Iterator[nn.Module]:
    """The network with the averaged weights in place of its own, for evaluation."""
    weights = {name: item for name, item in state.network.named_parameters() if name in state.ema}
    own = {name: item.data for name, item in weights.items()}
    training = state.network.training
    try:
        for name, item in weights.items():
            item.data = state.ema[name].to(item.dtype)
        yield state.network.eval()
    finally:
        for name, item in weights.items():
            item.data = own[name]
        state.network.train(training)


class _Loss(nn.Module):
    """The loss as a module that owns what it trains, which is what DistributedDataParallel wants to wrap."""

    def __init__(self, objective: Objective, state: TrainState) -> None:
        super().__init__()
        self.objective, self.network, self.companion = objective, state.network, state.companion

    def forward(
        self, clips: ClipBatch | ReadyBatch, generators: list[torch.Generator], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if isinstance(clips, ReadyBatch):
            return self.objective.ready_loss(self.network, clips, generators, step)
        return self.objective.loss(self.network, clips, generators, step)


def _start(config: TrainConfig, objective: Objective, device: torch.device) -> TrainState:
    torch.manual_seed(config.loop.seed)
    network = objective.build(config.network)
    if config.lora is not None:
        add_trained_adapter(network, config.lora)
    objective.to(device)
    network = network.to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    companion = objective.companion
    if companion is not None:
        companion.train()
    parts = [(network, objective.learning_rate_factor)]
    if companion is not None:
        parts.append((companion, lambda name: 1.0))
    optimizer = Optimizer(config.optimizer, parts, torch.bfloat16 if config.loop.precision == "bfloat16" else torch.float32)
    ema = {name: item.detach().float().clone() for name, item in network.named_parameters() if item.requires_grad}
    return TrainState(network, companion, optimizer, ema)


def _share(loop: LoopConfig, place: Ranks) -> range:
    """Which clips of a batch belong to this rank."""
    for name in ("batch_size", "save_every", "log_every", "keep_checkpoints", "micro_batch"):
        value = getattr(loop, name)
        if value is not None and value < 1:
            raise UserError(f"loop.{name} must be at least 1, not {value}")
    share, rest = divmod(loop.batch_size, place.size)
    if rest:
        raise UserError(f"loop.batch_size {loop.batch_size} cannot be shared by {place.size} ranks; make it a multiple")
    return range(place.rank * share, (place.rank + 1) * share)


def _batches(
    config: TrainConfig, source: ClipSource, output: Path, steps: range, share: range
) -> Generator[ClipBatch | ReadyBatch, None, None]:
    if config.data.kept is not None:
        return load_kept(config, output / "kept", steps=steps, share=share)
    loop = config.loop
    return load_batches(source, config.data, seed=loop.seed, batch_size=loop.batch_size, steps=steps, share=share)


def _advance(
    config: TrainConfig,
    module: nn.Module,
    state: TrainState,
    clips: ClipBatch | ReadyBatch,
    place: Ranks,
    share: range,
    stop: StopRequest,
) -> tuple[dict[str, float], bool]:
    """One optimiser step. Returns what to log (means over all clips), and whether any rank has been asked to stop."""
    loop, step = config.loop, state.step
    torch.manual_seed(derive_seed("step", loop.seed, place.rank, step))  # dropout; the rest has a generator per clip
    generators = [torch.Generator().manual_seed(derive_seed("clip", loop.seed, step, j)) for j in share]
    size = loop.micro_batch or len(share)
    sums: dict[str, Tensor] = {}
    for begin in range(0, len(share), size):
        part = slice(begin, begin + size)
        weight = len(share[part]) / len(share)
        last = begin + size >= len(share)
        local = isinstance(module, DistributedDataParallel) and not last
        with module.no_sync() if local else contextlib.nullcontext():  # type: ignore[operator]
            with precision_of(loop.precision, place.device):
                loss, scalars = module(clips[part], generators[part], step)
            (loss * weight).backward()
        for name, value in {"loss": loss, **scalars}.items():
            sums[name] = sums.get(name, 0.0) + value.detach().float() * weight
    asked = torch.tensor(float(stop.signal != 0), device=place.device)
    *means, stopping = place.mean(torch.stack([*sums.values(), asked])).tolist()
    facts = dict(zip(sums, means, strict=True))
    facts["lr"] = _update(config, state, facts)
    return facts, stopping > 0


def _update(config: TrainConfig, state: TrainState, facts: dict[str, float]) -> float:
    """Apply the gradients and take the average along; adds grad_norm to `facts` and returns the learning rate."""
    rate = learning_rate(config.optimizer, config.loop.steps, state.step)
    facts["grad_norm"] = _clip_gradients(state.network, config.optimizer.max_grad_norm)
    norms = [facts["grad_norm"]]
    if state.companion is not None:
        norms.append(_clip_gradients(state.companion, config.optimizer.max_grad_norm))
    if not all(map(math.isfinite, (facts["loss"], *norms))):
        raise UserError(
            f"step {state.step + 1}: the loss is {facts['loss']} with gradient norm {norms[0]}; the newest checkpoint is from "
            "before this step: lower optimizer.learning_rate, or use float32, and train into another folder"
        )
    state.optimizer.step(rate)
    update_ema(state.ema, state.network, ema_decay(config.loop.ema_decay, state.step))
    return rate


def _clip_gradients(module: nn.Module, limit: float) -> float:
    return float(nn.utils.clip_grad_norm_((item for item in module.parameters() if item.requires_grad), limit))


def _finished(config: TrainConfig, output: Path) -> bool:
    """Whether the run in `output` has been here already, up to the exported network; says so."""
    facts = read_export(output / "network")
    if facts is None or facts["step"] < config.loop.steps:
        return False
    check_recipe(facts["recipe"], config, output)
    if os.environ.get("RANK", "0") == "0":
        print(f"{output.name}: done already, {facts['step']} steps; the network is in {output / 'network'}", file=sys.stderr)
    return True


@torch.no_grad()
def _export(config: TrainConfig, objective: Objective, source: ClipSource, state: TrainState, output: Path) -> None:
    device = next(state.network.parameters()).device
    with averaged(state) as network:
        objective.finish(network, first_clips(source, config.data, _FINISHING_CLIPS).to(device))
        export_network(network, output / "network", {"step": state.step, "recipe": config.to_dict()})
    print(f"{output.name}: done, {state.step} steps; the network is in {output / 'network'}", file=sys.stderr)


def _say(place: Ranks, line: str) -> None:
    if place.first:
        tqdm.write(line, file=sys.stderr)


@torch.no_grad()
def _preview(
    config: TrainConfig, objective: Objective, source: ClipSource, output: Path, state: TrainState, device: torch.device
) -> None:
    """What the averaged network makes of some fixed clips: a video of them side by side, and a strip of its frames."""
    from videogen.video import Video, write_video

    clips = first_clips(source, config.data, _PREVIEW_CLIPS).to(device)
    generators = [torch.Generator().manual_seed(derive_seed("preview", i)) for i in range(len(clips))]
    with averaged(state) as network, precision_of(config.loop.precision, device):
        frames = objective.preview(network, clips, generators)
    pixels = frames.float().clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 1, 3, 4, 2).cpu().numpy()
    folder = output / "previews"
    folder.mkdir(exist_ok=True)
    beside = np.concatenate(list(pixels), axis=2)  # (F, H, N*W, 3)
    facts = {"run": output.name, "step": state.step}
    write_video(Video(beside, float(clips.fps[0]), facts), folder / f"step-{state.step:08d}.mp4", overwrite=True)
    shown = pixels[:, :: max(1, pixels.shape[1] // 8)][:, :8]
    strip = np.concatenate([np.concatenate(list(row), axis=1) for row in shown], axis=0)
    Image.fromarray(strip).save(folder / f"step-{state.step:08d}.png")
