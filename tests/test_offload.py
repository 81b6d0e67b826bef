"""Offload: no network is used while its weights are away, and none is forgotten. Without a GPU, "away" is the meta device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor, nn

from tiny import generators
from videogen.pipeline import VideoGenPipeline

CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-4}  # weights come back with another alignment


def video(pipe: VideoGenPipeline) -> Tensor:
    options: dict[str, Any] = {"num_frames": 2, "temporal_factor": 2, "num_inference_steps": 1, "output_type": "pt"}
    return pipe("a red ball", generator=generators(0), **options).frames


def networks(pipe: VideoGenPipeline) -> dict[str, nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


@pytest.fixture
def pipe(tiny_folder: Path) -> VideoGenPipeline:
    return VideoGenPipeline.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def plain(tiny_pipe: VideoGenPipeline) -> Tensor:
    return video(tiny_pipe)


def test_every_network_has_its_place_in_the_order(tiny_pipe: VideoGenPipeline) -> None:
    assert sorted(tiny_pipe.model_cpu_offload_seq.split("->")) == sorted(networks(tiny_pipe))


def test_networks_are_whole_only_inside_of_their_hooks(pipe: VideoGenPipeline, plain: Tensor) -> None:
    """As under model offload: a network's weights come before its forward (or `encode`, `read_text`) and go after it."""
    for network in networks(pipe).values():
        add_hook_to_module(network, AlignDevicesHook(torch.device("cpu"), offload=True, place_submodules=True))
        assert all(item.is_meta for item in network.parameters())
    torch.testing.assert_close(video(pipe), plain, **CLOSE)


def test_sequential_offload(pipe: VideoGenPipeline, plain: Tensor) -> None:
    """What `enable_sequential_cpu_offload` does, of which accelerate on a CPU bears only the plain device."""
    for network in networks(pipe).values():
        cpu_offload(network, torch.device("cpu"))
    assert all(item.is_meta for network in networks(pipe).values() for item in network.parameters())
    torch.testing.assert_close(video(pipe), plain, **CLOSE)
    torch.testing.assert_close(video(pipe), plain, **CLOSE)


def test_model_offload_holds_one_network_at_a_time(pipe: VideoGenPipeline, plain: Tensor) -> None:
    """A network counts as held from its hook's coming to its going; its coming sends the one before it in the order away."""
    pipe.enable_model_cpu_offload(device="cpu")
    names = {id(network): name for name, network in networks(pipe).items()}
    order = ["", *pipe.model_cpu_offload_seq.split("->")]
    held: set[str] = set()
    most: list[set[str]] = []

    def watch(hook: Any) -> None:
        come, go = hook.hook.pre_forward, hook.hook.init_hook

        def pre_forward(module: nn.Module, *args: Any, **options: Any) -> Any:
            result = come(module, *args, **options)
            name = names[id(module)]
            held.discard(order[order.index(name) - 1])
            held.add(name)
            most.append(set(held))
            return result

        def init_hook(module: nn.Module) -> nn.Module:
            held.discard(names[id(module)])
            return go(module)

        hook.hook.pre_forward, hook.hook.init_hook = pre_forward, init_hook

    for hook in pipe._all_hooks:
        watch(hook)
    assert torch.equal(video(pipe), plain)
    assert {name for names in most for name in names} == set(networks(pipe))
    assert max(map(len, most)) == 1
    assert torch.equal(video(pipe), plain)
