"""Training (section 3.5): the loop's promises, on a tiny real task."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from toy import Denoise, ToyClips, ToyNetwork, recipe

from videogen.config import DataConfig, LoraOptions, OptimizerConfig, TrainConfig, UserError
from videogen.data.diorama import Diorama
from videogen.data.loader import clip_index, crop_clip, first_clips, load_batches
from videogen.training.trainer import ema_decay, learning_rate, run, update_ema

TOY = Path(__file__).with_name("toy.py")


def train(output: Path, task: dict[str, Any] | None = None, **changes: Any) -> Path:
    torch.manual_seed(1)
    run(recipe(**changes), Denoise(**(task or {})), ToyClips(), output)
    return output


def state(output: Path, step: int) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint."""
    folder = output / "checkpoints" / f"step-{step:08d}"
    return {f"{path.stem}/{name}": tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def rows(output: Path) -> list[dict[str, float]]:
    """The log without its clock."""
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with a companion, uninterrupted."""
    return train(tmp_path_factory.mktemp("whole"), {"adversary": True})


def interrupt_after(steps: int, output: Path, config: TrainConfig, **task: Any) -> None:
    """Stop a run as the signal does, at a step that is no multiple of `save_every`."""

    class Impatient(ToyClips):
        asked = 0

        def clip(self, index: int) -> Any:
            self.asked += 1
            if self.asked == 4 * steps:
                os.kill(os.getpid(), signal.SIGINT)
            return super().clip(index)

    torch.manual_seed(1)
    with pytest.raises(SystemExit) as stopped:
        run(config, Denoise(**task), Impatient(), output)
    assert stopped.value.code == 130


def test_interrupted_and_resumed_equals_uninterrupted(whole: Path, tmp_path: Path) -> None:
    interrupt_after(3, tmp_path, recipe(), adversary=True)
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000002", "step-00000003"]
    assert not (tmp_path / "network").exists()
    train(tmp_path, {"adversary": True})
    tensors = state(whole, 6)
    assert {name.split("/")[0] for name in tensors} == {"network", "ema", "companion", "optimizer"}
    assert_equal(state(tmp_path, 6), tensors)
    assert rows(tmp_path) == rows(whole)
    assert [row["step"] for row in rows(whole)] == [1, 2, 3, 4, 5, 6]


def test_a_lora_run_trains_and_saves_the_adapter_alone_and_resumes(tmp_path: Path) -> None:
    lora = LoraOptions(rank=2, alpha=4.0, targets=("first", "last"))
    config, whole = dataclasses.replace(recipe(), lora=lora), tmp_path / "whole"
    torch.manual_seed(1)
    run(config, Denoise(), ToyClips(), whole)
    names = {f"{layer}.lora_{half}" for layer in ("first", "last") for half in "AB"}
    kept = [name.removeprefix("network/") for name in state(whole, 6) if name.startswith("network/")]
    assert {name.removesuffix(".default.weight") for name in kept} == names
    files = {path.name for path in (whole / "network").iterdir()}
    assert files == {"pytorch_lora_weights.safetensors", "training.json"}
    saved = load_file(whole / "network" / "pytorch_lora_weights.safetensors")
    assert {name.removesuffix(".weight") for name in saved} == names
    assert all(item.any() for item in saved.values())
    network = ToyNetwork()
    network.load_lora_adapter(whole / "network", prefix=None)
    assert network.peft_config["default_0"].lora_alpha == 4.0

    resumed = tmp_path / "resumed"
    interrupt_after(3, resumed, config)
    torch.manual_seed(1)
    run(config, Denoise(), ToyClips(), resumed)
    assert_equal(state(resumed, 6), state(whole, 6))
    other = dataclasses.replace(config, lora=dataclasses.replace(lora, rank=3), loop=recipe(steps=7).loop)
    with pytest.raises(UserError, match=r"lora\.rank was 2 and is 3"):
        run(other, Denoise(), ToyClips(), whole)


def test_a_killed_run_repeats_what_it_had_not_saved(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="step 4: the loss is nan"):
        train(tmp_path, {"adversary": True, "explode_at": 3})
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]
    train(tmp_path, {"adversary": True})
    assert_equal(state(tmp_path, 6), state(whole, 6))
    assert rows(tmp_path) == rows(whole)


def test_workers_do_not_change_a_run(whole: Path, tmp_path: Path) -> None:
    train(tmp_path, {"adversary": True}, workers=2)
    assert_equal(state(tmp_path, 6), state(whole, 6))


@pytest.mark.parametrize("size", [2, 3])
def test_micro_batches_equal_one_batch(tmp_path: Path, size: int) -> None:
    one = train(tmp_path / "one", {"dropout": False})
    some = train(tmp_path / "some", {"dropout": False}, micro_batch=size)
    assert_close(state(some, 6), state(one, 6))


def kept_files(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((output / "kept").glob("*.safetensors"))}


def test_kept_clips_are_made_once_and_learnt_from(tmp_path: Path) -> None:
    """Stopped while they are made and while they are learnt from, a run ends as one that was not."""
    one = train(tmp_path / "one", kept=5)
    files = kept_files(one)
    assert list(files) == [f"{index:06d}.safetensors" for index in range(5)]

    class Impatient(ToyClips):
        asked = 0

        def clip(self, index: int) -> Any:
            self.asked += 1
            if self.asked == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().clip(index)

    some = tmp_path / "some"
    with pytest.raises(SystemExit) as stopped:
        run(recipe(kept=5), Denoise(), Impatient(), some)
    assert stopped.value.code == 143
    made = kept_files(some)
    assert 0 < len(made) < 5
    assert not (some / "checkpoints").exists()
    train(some, kept=5, steps=3)
    assert kept_files(some) == files
    train(some, kept=5)
    assert {**made, **files} == kept_files(some)


def test_a_run_on_kept_clips_goes_on_bit_for_bit(tmp_path: Path) -> None:
    one, some = train(tmp_path / "one", kept=5), tmp_path / "some"
    shutil.copytree(one / "kept", some / "kept")

    class Slow(Denoise):
        def ready_loss(self, *given: Any) -> Any:
            if given[-1] == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return super().ready_loss(*given)

        def ready(self, *given: Any) -> Any:
            raise AssertionError("these clips were made already")

    torch.manual_seed(1)
    with pytest.raises(SystemExit):
        run(recipe(kept=5), Slow(), ToyClips(), some)
    assert [path.name for path in sorted((some / "checkpoints").iterdir())] == ["step-00000002", "step-00000003"]
    train(some, kept=5)
    assert_equal(state(some, 6), state(one, 6))
    assert rows(some) == rows(one)


def test_kept_clips_are_each_taken_once_an_epoch(tmp_path: Path) -> None:
    taken: list[float] = []

    class Watching(Denoise):
        def ready_loss(self, network: Any, ready: Any, *more: Any) -> Any:
            taken.extend(ready.parts["fps"].tolist())
            return super().ready_loss(network, ready, *more)

    run(recipe(kept=6, pairs=("motion",), steps=3), Watching(), ToyClips(), tmp_path)
    made = [load_file(tmp_path / "kept" / f"{index:06d}.safetensors")["fps"].item() for index in range(6)]
    assert sorted(taken[:6]) == sorted(taken[6:]) == sorted(made)
    pairs = [(made[index], made[index + 1]) for index in (0, 2, 4)]
    for epoch in (taken[:6], taken[6:]):
        assert sorted(zip(epoch[::2], epoch[1::2], strict=True)) == sorted(pairs)
    assert taken[:6] != taken[6:]


def test_kept_clips_are_said_in_all_of_their_captions(tmp_path: Path) -> None:
    heard: list[tuple[float, str]] = []

    class Listening(Denoise):
        def ready_loss(self, network: Any, ready: Any, *more: Any) -> Any:
            heard.extend(zip(ready.parts["fps"].tolist(), ready.captions, strict=True))
            return super().ready_loss(network, ready, *more)

    run(recipe(kept=3, steps=20), Listening(), ToyClips(), tmp_path)
    own = {(4.0 + index, f"clip {index}") for index in range(7)}
    again = {(4.0 + index, "again") for index in range(1, 7, 2)}
    rates = {rate for rate, _ in heard}
    assert {*heard} == {said for said in own | again if said[0] in rates}


def test_kept_clips_of_another_recipe_are_refused(tmp_path: Path) -> None:
    one, some = train(tmp_path / "one", kept=4, steps=1), tmp_path / "some"
    shutil.copytree(one / "kept", some / "kept")
    with pytest.raises(UserError, match=r"kept: data.crop was 6 and is 5; set it back, or train into another folder"):
        train(some, kept=4, crop=5)
    with pytest.raises(UserError, match=r"loop.seed was 0 and is 1"):
        train(some, kept=4, seed=1)
    train(some, kept=4, batch_size=2, steps=2)
    (some / "kept" / "000001.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match=r"cannot read .*000001.safetensors: .*; remove it, and the same command makes it anew"):
        train(some, kept=4, batch_size=2)
    (some / "kept" / "000001.safetensors").unlink()
    train(some, kept=4, batch_size=2)
    assert kept_files(some) == kept_files(one)
    for damaged in ("{", "[]", '{"objective": "image_reconstruction", "colour": 1}'):
        (some / "kept" / "recipe.json").write_text(damaged, encoding="utf-8")
        with pytest.raises(UserError, match=r"cannot read .*recipe.json: .*; remove .*kept, and the same command makes"):
            train(some, kept=4, batch_size=2, steps=8)


@pytest.mark.parametrize("data", [{"kept": 0}, {"kept": 3, "pairs": ("motion",)}])
def test_a_number_of_kept_clips_that_cannot_be_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"data.kept is \d: a number of clips, at least 1, and even where clips come in pairs"):
        DataConfig(**data)


@pytest.mark.parametrize("kept", [None, 5])
def test_two_ranks_equal_one_process(tmp_path: Path, kept: int | None) -> None:
    settings = ["dropout=false", "adversary=true", "micro_batch=1", f"kept={json.dumps(kept)}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(TOY)]
    subprocess.run([*command, str(tmp_path / "two"), *settings], check=True, capture_output=True, timeout=560)
    one = train(tmp_path / "one", {"dropout": False, "adversary": True}, kept=kept)
    assert_close(state(tmp_path / "two", 6), state(one, 6))
    assert_close(load_network(tmp_path / "two"), load_network(one))
    for got, expected in zip(rows(tmp_path / "two"), rows(one), strict=True):
        assert got == pytest.approx(expected, rel=1e-4)


def test_sigterm_saves_and_the_same_command_goes_on(whole: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(TOY), str(tmp_path), "adversary=true", "workers=1", "save_every=100"]
    process = subprocess.Popen([*command, "pause=0.3"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "log.jsonl").exists() or not rows(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.terminate()
    _, told = process.communicate(timeout=560)
    assert process.returncode == 143, told
    assert "the same command goes on" in told
    train(tmp_path, {"adversary": True}, save_every=100, workers=1)
    assert_equal(state(tmp_path, 6), state(whole, 6))


def load_network(output: Path) -> dict[str, torch.Tensor]:
    return dict(ToyNetwork.from_pretrained(output / "network").state_dict())


def test_the_exported_network_is_the_average(whole: Path) -> None:
    averages = {name.removeprefix("ema/"): tensor for name, tensor in state(whole, 6).items() if name.startswith("ema/")}
    assert_equal(load_network(whole), averages)
    assert json.loads((whole / "network" / "training.json").read_text())["step"] == 6


def test_a_finished_run_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    train(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert "done already, 6 steps" in capsys.readouterr().err
    (tmp_path / "network" / "training.json").unlink()
    train(tmp_path)
    assert json.loads((tmp_path / "network" / "training.json").read_text())["step"] == 6
    train(tmp_path, steps=7)
    assert json.loads((tmp_path / "network" / "training.json").read_text())["step"] == 7


def test_a_batch_that_ranks_cannot_share_or_an_impossible_crop_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.crop is 9 but the frames are 8x8"):
        train(tmp_path, crop=9, workers=1)
    with pytest.raises(UserError, match=r"loop.micro_batch must be at least 1"):
        train(tmp_path, micro_batch=0)


def test_preview_shows_clips_side_by_side(tmp_path: Path) -> None:
    from PIL import Image

    train(tmp_path, preview_every=4)
    assert sorted(path.name for path in (tmp_path / "previews").glob("*.mp4")) == ["step-00000004.mp4", "step-00000006.mp4"]
    with Image.open(tmp_path / "previews" / "step-00000006.png") as strip:
        assert strip.size == (2 * 6, 4 * 6)  # frames across, clips down


def test_learning_rate_rises_then_follows_a_cosine() -> None:
    options = OptimizerConfig(learning_rate=1.0, final_learning_rate=0.2, warmup_steps=4)
    assert [learning_rate(options, 14, step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert learning_rate(options, 14, 4) == 1.0
    assert learning_rate(options, 14, 9) == pytest.approx(0.6)
    assert learning_rate(options, 14, 14) == pytest.approx(0.2)
    assert learning_rate(options, 14, 20) == pytest.approx(0.2)


def test_average_of_constant_weights_has_its_closed_form() -> None:
    network = ToyNetwork()
    ema = {name: torch.zeros_like(item) for name, item in network.named_parameters()}
    kept = 1.0
    for step in range(20):
        update_ema(ema, network, ema_decay(0.6, step))
        kept *= min(0.6, (1 + step) / (10 + step))
    for name, item in network.named_parameters():
        torch.testing.assert_close(ema[name], (1 - kept) * item.detach())
    assert math.isclose(ema_decay(0.999, 0), 0.1)


def test_every_clip_is_seen_once_an_epoch_in_changing_order() -> None:
    epochs = [[clip_index(7, 3, 7 * epoch + place) for place in range(7)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert clip_index(2**31, 3, 12345) == 12345


def test_crops_with_an_offset_have_the_object_near_their_middle_and_a_pair_is_cropped_alike() -> None:
    data = DataConfig(crop=16, offset=2, pairs=("fps",), workers=0)
    source, far = Diorama(32, 1, seed=3, pairs=("fps",)), 0.0  # of one frame: both of a pair show the same
    for index in range(40):
        clip = source.clip(index)
        part, (x, y) = crop_clip(clip, data, seed=index), clip.middle  # type: ignore[misc]
        windows = np.lib.stride_tricks.sliding_window_view(clip.frames[0], (16, 16, 3))[:, :, 0]
        top, left = np.argwhere((windows == part.frames[0]).all((2, 3, 4)))[0]
        off = [abs(left + 8 - min(max(x, 8), 24)), abs(top + 8 - min(max(y, 8), 24))]  # at the edge crops stay inside
        assert max(off) <= 2.5
        far = max(far, *off)
    assert far > 1.5
    for batch in load_batches(source, data, seed=0, batch_size=4, steps=range(3), share=range(4)):
        for first, second in (batch.frames[:2], batch.frames[2:]):
            assert torch.equal(first, second)
    with pytest.raises(UserError, match="does not know where the middle"):
        crop_clip(ToyClips().clip(0), DataConfig(crop=5, offset=0), 0)
    for wrong in ({"offset": 3}, {"crop": 5, "offset": -1}):
        with pytest.raises(UserError, match=r"set data.crop, and an offset of at least 0"):
            DataConfig(**wrong)  # type: ignore[arg-type]


def test_batches_depend_on_seed_and_step_alone() -> None:
    data = DataConfig(crop=5, workers=0)

    def batches(start: int, share: range, workers: int = 0) -> list[Any]:
        options = DataConfig(crop=5, workers=workers)
        return list(load_batches(ToyClips(), options, seed=2, batch_size=4, steps=range(start, 5), share=share))

    whole, late = batches(0, range(4)), batches(3, range(2, 4), workers=1)
    for one, other in zip(whole[3:], late, strict=True):
        assert one.captions[2:] == other.captions
        assert torch.equal(one.frames[2:], other.frames)
        assert torch.equal(one.flow[2:], other.flow)
    assert whole[0].frames.shape == (4, 2, 3, 5, 5)
    assert whole[0].flow.shape == (4, 2, 2, 2, 5, 5)
    assert first_clips(ToyClips(), data, 3).captions == ["clip 0", "clip 1", "clip 2"]
