"""Checkpoints that survive a kill at any moment, and the export of a finished network (no section of the paper).

A checkpoint is a folder `step-00000500` of safetensors and JSON. It is written under another name, digested, flushed to disk
and renamed; older ones go only after that. The place in the data and all randomness follow from the step (data/loader.py,
trainer.py), so the step stands for both.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from videogen.config import TrainConfig, UserError, parse_train_config
from videogen.training.optimizers import Optimizer

MAY_CHANGE = frozenset(
    ("loop.steps", "loop.save_every", "loop.preview_every", "loop.log_every", "loop.keep_checkpoints", "data.workers")
)
_MANIFEST = "manifest.json"
_ABSENT = object()


@dataclass
class TrainState:
    """All that changes while a network learns. `step` counts finished steps; `seconds` is the time they took."""

    network: nn.Module
    companion: nn.Module | None
    optimizer: Optimizer
    ema: dict[str, Tensor]  # float32 average of the network's trained parameters, by name
    step: int = 0
    seconds: float = 0.0


def save_checkpoint(state: TrainState, config: TrainConfig, folder: Path, *, keep: int) -> Path:
    """Write `folder/step-...` and retire all but the newest `keep`. Raises UserError if the disk refuses."""
    final = folder / f"step-{state.step:08d}"
    stage = folder / f".{final.name}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(".step-*"):
            shutil.rmtree(old)
        stage.mkdir()
        _write_state(stage, state, config)
        if final.exists():  # it did not verify, or this run would have started from it
            final.rename(folder / f".{final.name}.damaged")
        stage.rename(final)
        _flush(folder)
        steps = _checkpoints(folder)
        stale = [path for path in steps if path.name > final.name] + [path for path in steps if path.name <= final.name][keep:]
        for old in [*stale, *folder.glob(".step-*")]:
            shutil.rmtree(old)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot save the checkpoint {final}: {error}; earlier checkpoints are whole") from None
    return final


def find_checkpoint(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is whole, or None if there are none at all. Tells `say` of each newer one that is damaged.

    Raises UserError if there are checkpoints and none is whole.
    """
    damaged: list[str] = []
    for path in _checkpoints(folder):
        fault = _fault(path)
        if fault is None:
            for line in damaged:
                say(f"{line}; going on from {path.name} instead")
            return path
        damaged.append(f"checkpoint {path.name} is damaged ({fault})")
    if damaged:
        raise UserError(f"no checkpoint in {folder} is whole: {'; '.join(damaged)}; move the folder away to start afresh")
    return None


def load_checkpoint(path: Path, state: TrainState, config: TrainConfig) -> None:
    """Put a whole checkpoint into `state`, in place. Raises UserError if its recipe or its tensors are not this run's."""
    saved = json.loads((path / "state.json").read_text(encoding="utf-8"))
    check_recipe(saved["config"], config, path)
    # Values are copied into tensors that torch has allocated: safetensors' own are unaligned, which changes the last bits.
    _copy(load_file(path / "network.safetensors"), _tensors(state.network), path / "network.safetensors")
    _copy(load_file(path / "ema.safetensors"), state.ema, path / "ema.safetensors")
    if state.companion is not None:
        _copy(load_file(path / "companion.safetensors"), _tensors(state.companion), path / "companion.safetensors")
    moments = load_file(path / "optimizer.safetensors")
    for name, item in _trained(state):
        state.optimizer.restore(item, moments, f"{name}.")
    state.step, state.seconds = int(saved["step"]), float(saved["seconds"])


def check_recipe(saved: Mapping[str, Any], config: TrainConfig, path: Path) -> None:
    """Raise UserError if the recipe differs from the saved one in a field that would change the course of the run.

    The fields of `MAY_CHANGE` may differ; another `loop.steps` stretches the learning rate's cosine from here on.
    """
    with contextlib.suppress(UserError):  # an option that is newer than the checkpoint counts at its default
        saved = parse_train_config(saved, str(path)).to_dict()
    before, now = dict(_fields(saved)), dict(_fields(config.to_dict()))
    for name in sorted((before.keys() | now.keys()) - MAY_CHANGE):
        old, new = before.get(name, _ABSENT), now.get(name, _ABSENT)
        if old != new:
            told = ["absent" if value is _ABSENT else repr(value) for value in (old, new)]
            raise UserError(
                f"the recipe has changed since {path}: {name} was {told[0]} and is {told[1]}; "
                "set it back, or train into another folder"
            )


def write_recipe(config: TrainConfig, folder: Path) -> None:
    """`config` as recipe.json of `folder`, which is made if missing, whole or not at all. Raises UserError if it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stage = folder / ".recipe.json.partial"
        _write_json(stage, config.to_dict())
        stage.replace(folder / "recipe.json")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another output folder") from None


def export_network(network: nn.Module, folder: Path, facts: Mapping[str, Any]) -> None:
    """`network.save_pretrained` into `folder`, whole or not at all; `facts` go into its training.json.

    Of a network with an adapter, the adapter alone is saved.
    """
    stage, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("partial", "old"))
    try:
        for path in (stage, old):
            shutil.rmtree(path, ignore_errors=True)
        adapted = bool(getattr(network, "peft_config", None))
        save = typing.cast(Any, network.save_lora_adapter if adapted else network.save_pretrained)
        save(stage)
        _write_json(stage / "training.json", {**facts, "versions": versions()})
        for path in stage.iterdir():
            _flush(path)
        _flush(stage)
        if folder.exists():
            folder.rename(old)
        stage.rename(folder)
        _flush(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot export the network to {folder}: {error}; run the same command again") from None


def read_export(folder: Path) -> dict[str, Any] | None:
    """The facts that `export_network` has left in `folder`, or None if it has not been there."""
    try:
        facts: dict[str, Any] = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts


def versions() -> dict[str, str]:
    """Versions of what decides a run's bits."""
    packages = {name: metadata.version(name) for name in ("torch", "diffusers", "transformers")}
    return {"python": platform.python_version(), **packages}


def _write_state(stage: Path, state: TrainState, config: TrainConfig) -> None:
    parts = {"network": _tensors(state.network), "ema": state.ema, "optimizer": _moments(state)}
    if state.companion is not None:
        parts["companion"] = _tensors(state.companion)
    for name, tensors in parts.items():
        whole = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        save_file(whole, stage / f"{name}.safetensors")
    facts = {"step": state.step, "seconds": state.seconds, "config": config.to_dict(), "versions": versions()}
    _write_json(stage / "state.json", facts)
    files = sorted(stage.iterdir())
    _write_json(stage / _MANIFEST, {path.name: _digest(path) for path in files})
    for path in [*files, stage / _MANIFEST, stage]:
        _flush(path)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Trained parameters and saved buffers by name, each tensor once. What is frozen follows from the recipe."""
    kept = module.state_dict().keys()
    trained = {name: item for name, item in module.named_parameters() if item.requires_grad}
    own: dict[str, Tensor] = {**trained, **dict(module.named_buffers())}
    return {name: tensor for name, tensor in own.items() if name in kept}


def _trained(state: TrainState) -> Iterator[tuple[str, nn.Parameter]]:
    for prefix, module in (("network", state.network), ("companion", state.companion)):
        if module is not None:
            yield from ((f"{prefix}.{name}", item) for name, item in module.named_parameters() if item.requires_grad)


def _moments(state: TrainState) -> dict[str, Tensor]:
    """The optimiser's state, flat."""
    named = ((name, state.optimizer.moments(item)) for name, item in _trained(state))
    return {f"{name}.{key}": tensor for name, moments in named for key, tensor in moments.items()}


def _copy(saved: dict[str, Tensor], target: Mapping[str, Tensor], path: Path) -> None:
    shapes = [{name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (saved, target)]
    if shapes[0] != shapes[1]:
        (name, *_) = sorted(name for name, _ in set(shapes[0].items()) ^ set(shapes[1].items()))
        raise UserError(f"{path} does not fit the network of this recipe, first at {name}; train into another folder")
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(saved[name])


def _checkpoints(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted((path for path in folder.glob("step-*") if path.name[5:].isdigit()), reverse=True)


def _fault(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        for name, digest in manifest.items():
            if _digest(path / name) != digest:
                return f"{name} is not as it was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, AttributeError) as error:
        return f"it cannot be read: {error}"
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _flush(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fields(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _fields(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
