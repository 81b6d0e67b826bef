"""What the classical checker of `videogen evaluate diorama` is worth when clips are not as clean as true ones.

Rates of clips read rightly, for held-out clips as they are and made worse: a model's are blurred, oversaturated, grainy; the
judge must not blame the model for what the judge cannot see. Also seconds a clip, on one thread. `videogen evaluate diorama
--true-clips SIZE` gives the rates on true clips after H.264, with intervals.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import cv2
import numpy as np
from measuring import Row, parser, report

from videogen.data.diorama import Diorama
from videogen.evaluation.diorama_benchmark import ASKED
from videogen.evaluation.diorama_checker import agreement, check

SEED = 31  # no threshold was chosen on its clips
Change = Callable[[np.ndarray], np.ndarray]


def halved(frames: np.ndarray) -> np.ndarray:
    """Brought to half the size and back."""
    size = frames.shape[1]
    small = [cv2.resize(frame, (size // 2, size // 2), interpolation=cv2.INTER_AREA) for frame in frames]
    return np.stack([cv2.resize(frame, (size, size), interpolation=cv2.INTER_LINEAR) for frame in small])


def contrasty(frames: np.ndarray) -> np.ndarray:
    """20% more contrast."""
    return np.clip((frames.astype(np.float32) - 128) * 1.2 + 128, 0, 255).astype(np.uint8)


def grainy(frames: np.ndarray) -> np.ndarray:
    """Gaussian noise of deviation 6 of 255."""
    return np.clip(frames + np.random.default_rng(0).normal(0, 6, frames.shape), 0, 255).astype(np.uint8)


CHANGES: dict[str, Change] = {"true": lambda frames: frames, "half size": halved, "contrast": contrasty, "grain": grainy}


def main() -> None:
    arguments = parser(__doc__, repeats=1)
    arguments.add_argument("--count", type=int, default=100, help="clips (default 100)")
    arguments.add_argument("--size", type=int, default=128, help="of a frame, pixels (default 128)")
    options = arguments.parse_args()
    cv2.setNumThreads(1)
    world = Diorama(options.size, 16, (4.0,), seed=SEED, split="held_out")
    rows: list[Row] = []
    for name, change in CHANGES.items():
        right, asked, seconds = dict.fromkeys(ASKED, 0), dict.fromkeys(ASKED, 0), 0.0
        for index in range(options.count):
            frames = change(world.clip(index).frames)
            start = time.perf_counter()
            reading = check(frames, 4.0)
            seconds += time.perf_counter() - start
            for attribute, found in agreement(reading, world.labels(index)).items():
                right[attribute] += found
                asked[attribute] += 1
        rates = {attribute: right[attribute] / max(asked[attribute], 1) for attribute in ASKED}
        rows.append({"clips": name, **rates, "s a clip": seconds / options.count})
    report(rows, options)


if __name__ == "__main__":
    main()
