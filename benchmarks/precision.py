"""Is bfloat16 faster here? A training step of mini's base network (forward, squared error, backward) in float32, in torch's own
autocast, and as `loop.precision = "bfloat16"` runs it (on a CPU: attention in float32), interleaved in one process."""

from __future__ import annotations

import contextlib
import statistics

import torch
from measuring import Row, interleaved, parser, ratio, report

from videogen.config import read_recipe
from videogen.models.unet import VideoUNet
from videogen.training.precision import precision_of


def main() -> None:
    arguments = parser(__doc__, repeats=5)
    arguments.add_argument("--batch-size", type=int, default=6, help="clips of 16 frames (default 6, as in mini/base)")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = VideoUNet(**read_recipe("mini/base").network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    clips, side, device = options.batch_size, network.config.sample_size, torch.device("cpu")
    sample, reference = torch.randn(clips, 16, 4, side, side), torch.randn(clips, 4, side, side)
    text, times, fps = (
        torch.randn(clips, 40, network.config.cross_attention_dim),
        torch.full((clips,), 500),
        torch.full((clips,), 4.0),
    )

    def step(precision: contextlib.AbstractContextManager[object]) -> None:
        with precision:
            loss = network(sample, times, fps=fps, text=text, reference=reference).float().square().mean()
        loss.backward()
        network.zero_grad(set_to_none=True)

    seconds = interleaved(
        {
            "float32": lambda: step(precision_of("float32", device)),
            "bfloat16, torch's autocast": lambda: step(torch.autocast("cpu", torch.bfloat16)),
            "bfloat16, attention in float32": lambda: step(precision_of("bfloat16", device)),
        },
        options.repeats,
    )
    rows: list[Row] = [
        {"step": name, "seconds": statistics.median(each), "ratio": ratio(each, seconds["float32"])}
        for name, each in seconds.items()
    ]
    report(rows, options)


if __name__ == "__main__":
    main()
