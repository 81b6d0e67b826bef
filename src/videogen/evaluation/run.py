"""Passing videos through the metrics of section 4.1, and joining what the ranks of torchrun saw.

Rank r of R measures the samples r, r + R, r + 2R, ...; rank 0 joins the parts, which lie in the output folder, and writes the
results: one JSON a number, each with the fingerprint of its protocol.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from videogen.config import UserError
from videogen.evaluation.features import FeatureSource, VideoNetwork
from videogen.evaluation.in_domain import TrueClips
from videogen.evaluation.measures import Measure, RealVideos, VideoMoments
from videogen.evaluation.production import Team
from videogen.evaluation.result import Result, digest, fingerprint
from videogen.evaluation.statistics import GroupedMoments
from videogen.evaluation.videos import Sample, Sampling, VideoFolderSamples, Videos
from videogen.files import reason, staging

REAL = "real.safetensors"


@dataclass
class Seen:
    """What was measured, by all ranks together."""

    samples: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    sizes: Counter[str] = field(default_factory=Counter)
    rates: Counter[str] = field(default_factory=Counter)

    def add(self, other: Mapping[str, Any]) -> None:
        self.samples += other["samples"]
        self.skipped += [(name, why) for name, why in other["skipped"]]
        self.sizes.update(other["sizes"])
        self.rates.update(other["rates"])

    @property
    def fps(self) -> float | None:
        """Of the measured frames, where it is one for all."""
        return float(next(iter(self.rates))) if len(self.rates) == 1 and "None" not in self.rates else None


def measure(
    videos: Videos,
    measures: Sequence[Measure],
    output: Path,
    team: Team,
    *,
    batch_size: int = 8,
    say: Callable[[str], None] = lambda _: None,
) -> Seen:
    """Pass this rank's share of the videos through all measures; on rank 0 they then hold what all ranks saw.

    What is said of single samples goes to output/samples.jsonl, in their order. At most `batch_size` videos are in memory.
    Raises UserError where a video is bad (unless videos.skip_bad) or none is left.
    """
    parts = output / ".parts"
    parts.mkdir(parents=True, exist_ok=True)
    rank, size = team.ranks.rank, team.ranks.size
    seen = Seen()
    with (parts / f"{rank}.jsonl").open("w", encoding="utf-8") as lines:
        for batch in _batches(videos.samples(rank, size), batch_size):
            found: dict[str, np.ndarray] = {}
            for each in measures:
                found |= each.add(batch)
            for place, sample in enumerate(batch):
                told = {name: column[place].item() for name, column in found.items()}
                lines.write(json.dumps({"index": sample.index, "name": sample.name, **told}) + "\n")
            seen.samples += len(batch)
            say(f"{seen.samples} of {len(videos.names[rank::size])} videos measured")
    seen.skipped = list(videos.skipped)
    seen.sizes.update(videos.sizes)
    seen.rates.update({str(rate): count for rate, count in videos.rates.items()})
    _save_part(parts / str(rank), measures, seen)
    team.wait()
    if team.ranks.first:
        for other in range(1, size):
            _join_part(parts / str(other), measures, seen)
        _join_lines([parts / f"{other}.jsonl" for other in range(size)], output / "samples.jsonl")
        seen.skipped.sort()
        shutil.rmtree(parts)
        if not seen.samples:
            raise UserError(f"none of the {len(videos)} videos in {videos.folder} can be used: {seen.skipped[0][1]}")
    team.wait()
    return seen


def _batches(samples: Iterator[Sample], size: int) -> Iterator[list[Sample]]:
    while batch := list(itertools.islice(samples, size)):
        yield batch


def _save_part(path: Path, measures: Sequence[Measure], seen: Seen) -> None:
    state = {f"{each.name}/{key}": np.ascontiguousarray(value) for each in measures for key, value in each.state().items()}
    save_file(state, path.with_suffix(".safetensors"))
    path.with_suffix(".json").write_text(json.dumps(vars(seen)), encoding="utf-8")


def _join_part(path: Path, measures: Sequence[Measure], seen: Seen) -> None:
    seen.add(json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))
    state = load_file(path.with_suffix(".safetensors"))
    for each in measures:
        start = f"{each.name}/"
        each.merge({key.removeprefix(start): value for key, value in state.items() if key.startswith(start)})


def _join_lines(paths: Sequence[Path], output: Path) -> None:
    """Files sorted by index into one that is."""
    with contextlib.ExitStack() as stack, output.open("w", encoding="utf-8") as joined:
        files = [stack.enter_context(path.open(encoding="utf-8")) for path in paths]
        joined.writelines(heapq.merge(*files, key=lambda line: json.loads(line)["index"]))


def conclude(
    videos: Videos,
    measures: Sequence[Measure],
    seen: Seen,
    output: Path,
    *,
    prompts: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    details: Mapping[str, Any] | None = None,
    protocol: Mapping[str, Any] | None = None,
) -> tuple[list[Result], list[str]]:
    """On rank 0, after `measure`: output/METRIC.json for each number, and warnings to show. Raises UserError."""
    sampling = videos.sampling
    results: list[Result] = []
    warnings: list[str] = []
    about = {
        **(details or {}),
        "skipped": [{"name": name, "why": why} for name, why in seen.skipped[:100]],
        "source_sizes": dict(seen.sizes.most_common(20)),
        "source_rates": dict(seen.rates.most_common(20)),
    }
    for number in (number for each in measures for number in each.numbers()):
        print_of = fingerprint(
            prompts=prompts,
            count=len(videos),
            seeds=seeds,
            size=(sampling.size or 0, sampling.size or 0),
            num_frames=sampling.num_frames or 0,
            stride=sampling.stride,
            fps=seen.fps,
            start=sampling.start,
            resize="; ".join(part for part in (sampling.describe()["resize"], number.resize) if part),
            features=number.source,
            **{**(protocol or {}), **(number.protocol or {})},
        )
        result = Result(
            number.metric, number.value, number.spread, number.interval, seen.samples, len(seen.skipped), print_of,
            {**about, **(number.details or {}), "warnings": list(number.warnings)}, number.in_domain,
        )  # fmt: skip
        result.write(output / f"{number.metric}.json")
        results.append(result)
        warnings += number.warnings
    return results, warnings


@dataclass(frozen=True)
class RealSet:
    """Real videos that FVD compares with. place: their folder, a real.safetensors, or Diorama; names: only these of the
    folder."""

    place: Path | TrueClips
    sampling: Sampling
    names: Sequence[str] = ()
    skip_bad: bool = False


def real_videos(
    given: RealSet, network: VideoNetwork, source: FeatureSource, output: Path, team: Team
) -> Callable[[], RealVideos]:
    """The real side of FVD, of a folder, of Diorama or of what an earlier run left; taken in by all ranks together.

    Unless it was a file it is saved as output/real.safetensors; true clips of Diorama are taken from there, if they are those.
    Raises UserError where a file was made with other weights or sampling.
    """
    wanted = {"network": source.sha256, "prepared": network.resize}
    wanted |= {key: str(value) for key, value in given.sampling.describe().items()}
    if isinstance(given.place, Path) and given.place.is_file():
        moments, identity = _read_real(given.place)
        if different := [key for key, value in wanted.items() if identity.get(key) != value]:
            raise UserError(f"{given.place} was made with another {different[0]}: give the folder of real videos instead")
        return lambda: RealVideos(moments, identity)
    saved = output / REAL
    if isinstance(given.place, TrueClips):
        videos: Videos = given.place
        wanted["names"] = digest(videos.names)
        if saved.is_file() and wanted.items() <= (found := _read_real(saved))[1].items():
            return lambda: RealVideos(*found)
    else:
        videos = VideoFolderSamples(given.place, given.sampling, given.skip_bad, list(given.names))
    taken = VideoMoments(network, source)
    seen = measure(videos, [taken], output / "real", team)
    counts = {"videos": str(seen.samples), "skipped": str(len(seen.skipped))}
    identity = {**wanted, **counts, "names": digest(videos.names)}
    if team.ranks.first:
        with staging(saved) as stage:
            save_file(taken.state(), stage / "real", metadata=identity)
            (stage / "real").replace(saved)
    return lambda: RealVideos(taken.moments, identity)


def _read_real(path: Path) -> tuple[GroupedMoments, dict[str, str]]:
    try:
        with safe_open(path, framework="numpy") as file:
            identity = dict(file.metadata() or {})
        return GroupedMoments.from_state(load_file(path)), identity
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path} holds no moments of real videos: {reason(error)}") from None
