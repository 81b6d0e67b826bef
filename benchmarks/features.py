"""Feature networks in videos a second, and the memory that streamed metrics hold.

networks: I3D and C3D as published, random weights, from frames in memory (16 x 256 x 256, uint8) to features, with resizing.
streaming: FVD between two sets of N videos and the Inception Score of one, fed in batches of 16 random features (400 numbers
and 101 probabilities a video). state MB: what the sums hold; peak MB: what numpy and Python held at most beyond the start,
final arithmetic included. noise floor: FVD between two halves of one set, here of unit Gaussian features.
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc

import numpy as np
import torch
from measuring import Row, interleaved, parser, report

from videogen.evaluation.features import C3D, I3D, video_features
from videogen.evaluation.frechet_video_distance import frechet_distance, frechet_interval, noise_floor
from videogen.evaluation.inception_score import InceptionScore, softmax
from videogen.evaluation.statistics import GroupedMoments

BATCH = 16


def networks(options: argparse.Namespace) -> list[Row]:
    generator = np.random.default_rng(0)
    videos = [generator.integers(0, 256, (16, 256, 256, 3), dtype=np.uint8) for _ in range(options.batch_size)]
    made = {kind.__name__: kind().eval().to(options.device) for kind in (I3D, C3D)}
    calls = {name: lambda network=network: video_features(network, videos) for name, network in made.items()}
    seconds = interleaved(calls, options.repeats)
    return [
        {
            "network": name,
            "million parameters": sum(parameter.numel() for parameter in network.parameters()) / 1e6,
            "videos a second": options.batch_size / statistics.median(seconds[name]),
        }
        for name, network in made.items()
    ]


def streaming(samples: int) -> Row:
    tracemalloc.start()
    start = time.perf_counter()
    generator = np.random.default_rng(0)
    real, made, score = GroupedMoments(I3D.dimensions), GroupedMoments(I3D.dimensions), InceptionScore(C3D.dimensions)
    for first in range(0, samples, BATCH):
        indices = np.arange(first, min(first + BATCH, samples))
        for moments in (real, made):
            moments.add(generator.normal(size=(len(indices), I3D.dimensions)), indices)
        score.add(softmax(generator.normal(0, 3, (len(indices), C3D.dimensions))), indices)
    streamed = time.perf_counter() - start
    frechet_distance(real.whole(), made.whole())
    floor = noise_floor(made)
    frechet_interval(real, made, n=3)
    score.interval()
    state = [array.nbytes for each in (real.state(), made.state(), score.state()) for array in each.values()]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "samples": samples,
        "seconds to stream": streamed,
        "state MB": sum(state) / 1e6,
        "peak MB": peak / 1e6,
        "noise floor": floor,
    }


def main() -> None:
    arguments = parser(__doc__, repeats=5)
    add = arguments.add_argument
    add("--parts", nargs="+", choices=("networks", "streaming"), default=["networks", "streaming"])
    add("--samples", nargs="+", type=int, default=[1000, 10_000], help="of the streamed metrics (default 1000 10000)")
    add("--batch-size", type=int, default=1, help="videos a call of a network (default 1)")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--threads", type=int, default=2, help="CPU threads (default 2)")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if "networks" in options.parts:
        report(networks(options), options)
    if "streaming" in options.parts:
        report([streaming(samples) for samples in options.samples], options)


if __name__ == "__main__":
    main()
