"""Clips kept on disk with what the frozen networks make of them (`data.kept`, ours; section 3.5).

Where conditions take longer than learning from them, as in super-resolution, each is made once, in a file of its own that
appears whole or not at all, and every step takes some of them. A run that was stopped goes on with what is missing.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from videogen.config import TrainConfig, UserError, parse_train_config
from videogen.data.clips import ClipSource, ReadyBatch
from videogen.data.loader import Item, derive_seed, load_batches, load_items
from videogen.training.checkpoint import check_recipe, write_recipe
from videogen.training.distributed import Ranks, StopRequest
from videogen.training.objectives import Objective
from videogen.training.precision import precision_of

_TOGETHER = 2  # clips made at a time: a pair
_MAKING = ("objective", "network", "data")
_LEARNING = {
    "initial",
    "relative_error",
    "crop",
    "crop_anywhere",
    "high_noise",
    "temporal_factor",
}  # options that make nothing of it


def make_kept(
    config: TrainConfig, objective: Objective, source: ClipSource, folder: Path, place: Ranks, stop: StopRequest
) -> bool:
    """Make what is missing in `folder` of the clips that the run learns from; False if a signal came before the end.

    Latents and conditions are kept in half precision, and every caption that the source has. Raises UserError if the folder
    is of another recipe.
    """
    count, seed = config.data.kept or 0, config.loop.seed
    _check_folder(config, folder, place)
    missing = [
        step
        for step in range(place.rank, -(-count // _TOGETHER), place.size)
        if not all(_file(folder, index).exists() for index in _indices(step, count))
    ]
    batches = load_batches(source, config.data, seed=seed, batch_size=_TOGETHER, steps=missing, share=range(_TOGETHER))
    bar = tqdm(
        total=len(missing) * _TOGETHER, desc=f"{folder.parent.name}: clips to keep", unit="clip", disable=not place.first
    )
    with contextlib.closing(batches), bar:
        for step, clips in zip(missing, batches, strict=True):
            if stop.signal:
                break
            generators = [torch.Generator().manual_seed(derive_seed("kept", seed, step, j)) for j in range(_TOGETHER)]
            with precision_of(config.loop.precision, place.device):
                ready = objective.ready(clips.to(place.device), generators)
            for j, index in enumerate(_indices(step, count)):
                said = [ready.captions[j], *clips.paraphrases[j]]
                _save({name: each[j] for name, each in ready.parts.items()}, said, _file(folder, index))
            bar.update(_TOGETHER)
    stopped = place.mean(torch.tensor(float(stop.signal != 0), device=place.device))
    return not bool(stopped)


def load_kept(config: TrainConfig, folder: Path, *, steps: range, share: range) -> Generator[ReadyBatch, None, None]:
    """One batch a step of clips that `make_kept` has made: each once an epoch, in a new order, pairs side by side, in any of
    its captions.

    Close it when done. Raises UserError if one cannot be read.
    """
    return load_items(
        _Kept(folder),
        config.data.kept or 0,
        config.data,
        seed=config.loop.seed,
        batch_size=config.loop.batch_size,
        steps=steps,
        share=share,
        collate=_collate,
    )


_One = tuple[dict[str, Tensor], str]


class _Kept(Dataset[_One | UserError]):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, item: Item) -> _One | UserError:
        index, seed = item
        path = _file(self.folder, index)
        try:
            with safe_open(path, "pt") as file:
                captions = json.loads(file.metadata()["captions"])
                parts = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
            return parts, random.Random(derive_seed("said", seed, index)).choice(captions)
        except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
            return UserError(f"cannot read {path}: {error}; remove it, and the same command makes it anew")


def _collate(clips: list[_One]) -> ReadyBatch:
    parts, captions = zip(*clips, strict=True)
    return ReadyBatch({name: torch.stack([each[name] for each in parts]) for name in parts[0]}, list(captions))


def _indices(step: int, count: int) -> range:
    return range(step * _TOGETHER, min(count, (step + 1) * _TOGETHER))


def _file(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.safetensors"


def _save(parts: dict[str, Tensor], captions: list[str], path: Path) -> None:
    stage = path.with_suffix(".partial")
    tensors = {name: (each.half() if each.ndim else each).cpu().contiguous() for name, each in parts.items()}
    try:
        save_file(tensors, stage, {"captions": json.dumps(captions)})
        stage.replace(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path}: {error}; run the same command again") from None


def _check_folder(config: TrainConfig, folder: Path, place: Ranks) -> None:
    """What is kept depends on all of a recipe but how it is learnt."""
    path, now = folder / "recipe.json", config.to_dict()
    if path.exists():
        saved = _recipe(path)
        loop = {**now["loop"], "seed": saved["loop"]["seed"]}
        options = {**saved["options"], **{name: now["options"][name] for name in _LEARNING & now["options"].keys()}}
        check_recipe({**now, **{name: saved[name] for name in _MAKING}, "loop": loop, "options": options}, config, folder)
    elif place.first:
        write_recipe(config, folder)
    place.wait()


def _recipe(path: Path) -> dict[str, Any]:
    """The recipe that clips were kept for. Raises UserError if the file is damaged."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        return parse_train_config(saved, str(path)).to_dict()
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"cannot read {path}: {error}; remove {path.parent}, and the same command makes them anew") from None
