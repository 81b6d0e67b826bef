"""Batches that are a pure function of (seed, step): which clips, how they are cropped, in which order (section 4.1).

Nothing here has a state to save: a loader that starts at step n delivers what an uninterrupted one delivers from n on.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import random
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from videogen.config import DataConfig, UserError
from videogen.data.clips import Clip, ClipBatch, ClipSource, collate

_ENDLESS = 2**24  # sources longer than this are taken in order: their clips are as good as random already

One = TypeVar("One")
Batch = TypeVar("Batch")
Item = tuple[int, int]  # index of a clip in the source, seed of its crop


def derive_seed(*parts: int | str) -> int:
    """A seed in 0 .. 2^63-1 from anything that names a place in a run: equal parts, equal seed; else unrelated."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def clip_source(data: DataConfig, seed: int) -> ClipSource:
    """The source that `data.source` names: "diorama", a folder of videos or a captions CSV."""
    if data.source == "diorama":
        from videogen.data.diorama import Diorama

        return Diorama(
            data.size, data.num_frames, data.fps, seed=seed, flow=data.flow, dry=data.dry, pairs=data.pairs, only=data.only
        )
    from videogen.data.captioned import VideoFolder

    return VideoFolder(Path(data.source), data, seed)


@functools.lru_cache(maxsize=2)
def _order(length: int, seed: int, epoch: int) -> torch.Tensor:
    return torch.randperm(length, generator=torch.Generator().manual_seed(derive_seed("order", seed, epoch)))


def clip_index(length: int, seed: int, place: int, together: int = 1) -> int:
    """Which clip of a source stands at `place` = step * batch size + j: every clip once an epoch, each epoch in a new order.

    So many as are `together`, from a multiple of that on, stay side by side.
    """
    epoch, place = divmod(place, length)
    if length > _ENDLESS:
        return place
    group, place = divmod(place, together)
    return int(_order(length // together, seed, epoch)[group]) * together + place


def crop_clip(clip: Clip, data: DataConfig, seed: int) -> Clip:
    """A square of `data.crop` pixels, the same in all frames and in the flow (whose values stay: they are in pixels).

    It lies anywhere or, with `data.offset`, has the clip's middle at most so far from its own, as far as the frames reach.
    """
    side = data.crop
    if side is None:
        return clip
    height, width = clip.frames.shape[1:3]
    if side > min(height, width):
        raise UserError(f"data.crop is {side} but the frames are {width}x{height}; make it at most {min(height, width)}")
    chance = random.Random(seed)
    if data.offset is not None:
        if clip.middle is None:
            raise UserError("data.offset: this source does not know where the middle of its clips is; leave it out")
        x, y = (round(middle - side / 2) + chance.randint(-data.offset, data.offset) for middle in clip.middle)
        top, left = min(max(y, 0), height - side), min(max(x, 0), width - side)
    else:
        top, left = chance.randint(0, height - side), chance.randint(0, width - side)
    rows, columns = slice(top, top + side), slice(left, left + side)
    flow = None if clip.flow is None else clip.flow[..., rows, columns]
    return dataclasses.replace(clip, frames=clip.frames[:, rows, columns], flow=flow)


class _Clips(Dataset[Clip | UserError]):
    """An error is handed over as a value: raised in a worker it would reach the user as a page of traceback."""

    def __init__(self, source: ClipSource, data: DataConfig) -> None:
        self.source, self.data = source, data

    def __getitem__(self, item: Item) -> Clip | UserError:
        index, seed = item
        try:
            return crop_clip(self.source.clip(index), self.data, seed)
        except UserError as error:
            return error


class _Places(Sampler[list[Item]]):
    """For each of `steps` the clips of one rank."""

    def __init__(self, length: int, data: DataConfig, seed: int, batch_size: int, steps: Sequence[int], share: range) -> None:
        self.length, self.seed, self.batch_size, self.steps, self.share = length, seed, batch_size, steps, share
        self.together = 2 if data.pairs else 1  # clips in a row that are cropped alike

    def __iter__(self) -> Iterator[list[Item]]:
        for step in self.steps:
            places = [step * self.batch_size + j for j in self.share]
            indices = [clip_index(self.length, self.seed, place, self.together) for place in places]
            crops = [derive_seed("crop", self.seed, step, j // self.together) for j in self.share]
            yield list(zip(indices, crops, strict=True))


def _start_worker(number: int) -> None:
    """A worker lives until its trainer says so: the trainer needs it to finish the step that a signal interrupts."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def load_batches(
    source: ClipSource, data: DataConfig, *, seed: int, batch_size: int, steps: Sequence[int], share: range
) -> Generator[ClipBatch, None, None]:
    """One batch a step of `steps`: the clips `share` (of 0 .. batch_size-1), rendered ahead by `data.workers` processes.

    Close it when done: its processes ignore signals. Raises UserError if the source is empty or a clip cannot be read.
    """
    if len(source) < 1:
        raise UserError(f"the source {data.source!r} has no clips")
    return load_items(
        _Clips(source, data),
        len(source),
        data,
        seed=seed,
        batch_size=batch_size,
        steps=steps,
        share=share,
        collate=collate,
    )


def load_items(
    dataset: Dataset[One | UserError],
    length: int,
    data: DataConfig,
    *,
    seed: int,
    batch_size: int,
    steps: Sequence[int],
    share: range,
    collate: Callable[[list[One]], Batch],
) -> Generator[Batch, None, None]:
    """`load_batches` of anything that is read by (index, seed of a crop), `length` in all, an error being handed over."""
    loader: DataLoader[One | UserError] = DataLoader(
        dataset,
        batch_sampler=_Places(length, data, seed, batch_size, steps, share),
        collate_fn=functools.partial(_all_or_error, collate),
        num_workers=data.workers,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _all_or_error(collate: Callable[[list[Any]], Batch], items: list[Any]) -> Batch | UserError:
    return next((item for item in items if isinstance(item, UserError)), None) or collate(items)


def first_clips(source: ClipSource, data: DataConfig, count: int) -> ClipBatch:
    """The first `count` clips of the source, with fixed crops: what previews show."""
    indices = range(min(count, len(source)))
    return collate([crop_clip(source.clip(i), data, derive_seed("preview", i)) for i in indices])
