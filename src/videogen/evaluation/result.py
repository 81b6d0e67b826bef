"""A number of section 4 with all that it depends on, so that nobody compares numbers of different protocols."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import videogen
from videogen.config import UserError
from videogen.files import open_regular, reason, staging

if TYPE_CHECKING:
    from videogen.evaluation.features import FeatureSource

FORMAT = 1
MUST_AGREE = (
    "prompts_sha256", "count", "seeds", "height", "width", "num_frames", "stride", "fps", "resize", "features", "protocol",
    "versions",
)  # fmt: skip
"""Keys of a fingerprint, in the order in which they are shown. Results are comparable where all of them agree."""

LIBRARIES = ("torch", "transformers", "numpy", "pillow", "av", "opencv-python-headless")
"""What can change a number."""

MAX_BYTES = 1 << 24


@dataclass(frozen=True)
class Result:
    """One metric of one set of videos.

    spread: as the paper gives it, the +- of the metric (each metric says of what); interval: 95%, by bootstrap; samples: videos
    that were measured; skipped: videos that could not be read; fingerprint: the protocol, see `fingerprint`; details: whatever
    else is worth knowing, never compared; in_domain: measured with networks trained on Diorama, never comparable with the
    paper's.
    """

    metric: str
    value: float
    spread: float | None
    interval: tuple[float, float] | None
    samples: int
    skipped: int
    fingerprint: Mapping[str, Any]
    details: Mapping[str, Any] = field(default_factory=dict)
    in_domain: bool = False

    def write(self, path: str | Path) -> None:
        """As JSON; appears whole, and replaces a file that is there. Raises UserError where it cannot."""
        try:
            text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1, allow_nan=False) + "\n"
        except ValueError:
            raise UserError(f"the {self.metric} is not a finite number: are there enough videos?") from None
        place = Path(path)
        with staging(place) as folder:
            staged = folder / "result.json"
            staged.write_text(text, encoding="utf-8")
            staged.replace(place)


def read_result(path: str | Path) -> Result:
    """What `Result.write` wrote. Raises UserError on anything else."""
    with open_regular(path) as file:
        data = file.read(MAX_BYTES + 1)
    try:
        table = json.loads(data[:MAX_BYTES].decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a result: {reason(error)}") from None
    names = {each.name for each in fields(Result)}
    if not isinstance(table, dict) or table.pop("format", None) != FORMAT or table.keys() != names:
        raise UserError(f"{path} is not a result of `videogen evaluate`, format {FORMAT}")
    if isinstance(table["interval"], list):
        table["interval"] = tuple(table["interval"])
    result = Result(**table)
    _check(result, path)
    return result


def _check(result: Result, path: str | Path) -> None:
    interval: Any = result.interval
    fine = (
        isinstance(result.metric, str)
        and _is_number(result.value)
        and (result.spread is None or _is_number(result.spread))
        and (interval is None or (isinstance(interval, tuple) and len(interval) == 2 and all(map(_is_number, interval))))
        and all(type(count) is int and count >= 0 for count in (result.samples, result.skipped))
        and isinstance(result.fingerprint, dict)
        and isinstance(result.details, dict)
        and isinstance(result.in_domain, bool)
    )
    if not fine:
        raise UserError(f"{path} is not a result of `videogen evaluate`: a field has the wrong type")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def fingerprint(
    *,
    prompts: Sequence[str] | None,
    count: int,
    seeds: Sequence[int] | None,
    size: tuple[int, int],
    num_frames: int,
    stride: int = 1,
    fps: float | None = None,
    resize: str = "none",
    features: FeatureSource | None = None,
    **protocol: Any,
) -> dict[str, Any]:
    """All that a number depends on beside the videos themselves, as JSON types.

    prompts: of the samples, in order; None: unknown; count: samples asked for; seeds: one a sample, in order; None: unknown;
    size: (height, width) of the measured frames; stride: between frames taken of a video; fps: of the measured frames, None:
    whatever the file has; resize: how frames came to `size`, with all that follows up to the network; features: the weights;
    protocol: what else the metric needs to be told apart (splits, reference set), JSON types.
    """
    source: dict[str, Any] | None = None
    if features is not None:
        source = {"name": features.name, "sha256": features.sha256, "verified": features.verified}
        if features.in_domain:
            source["in_domain"] = True
    return {
        "prompts_sha256": None if prompts is None else digest(prompts),
        "count": count,
        "seeds": None if seeds is None else {"first": seeds[0] if seeds else None, "sha256": digest(map(str, seeds))},
        "height": size[0],
        "width": size[1],
        "num_frames": num_frames,
        "stride": stride,
        "fps": fps,
        "resize": resize,
        "features": source,
        "protocol": json.loads(json.dumps(protocol)),
        "versions": versions(),
    }


def digest(lines: Any) -> str:
    """SHA-256 of strings joined by newlines, UTF-8."""
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


def versions() -> dict[str, str | None]:
    """Of this package and of the libraries that can change a number; None: not installed."""

    def version(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    return {"videogen": videogen.__version__, **{name: version(name) for name in LIBRARIES}}


def differences(first: Result, second: Result) -> dict[str, tuple[Any, Any]]:
    """What keeps two results from being compared: name -> both values. Tables are told apart key by key."""
    found = {
        name: (getattr(first, name), getattr(second, name))
        for name in ("metric", "in_domain", "samples")
        if getattr(first, name) != getattr(second, name)
    }
    for key in sorted(first.fingerprint.keys() | second.fingerprint.keys(), key=_order):
        a, b = first.fingerprint.get(key), second.fingerprint.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            parts = sorted(part for part in a.keys() | b.keys() if a.get(part) != b.get(part))
            found |= {f"{key}.{part}": (a.get(part), b.get(part)) for part in parts}
        elif a != b:
            found[key] = (a, b)
    return found


def _order(key: str) -> tuple[int, str]:
    return (MUST_AGREE.index(key) if key in MUST_AGREE else len(MUST_AGREE), key)


def compare(first: Result, second: Result, names: tuple[str, str] = ("first", "second"), allow: Collection[str] = ()) -> str:
    """A table of both. Raises UserError, naming what differs, where they were not measured alike.

    allow: keys (`seeds`, or a part such as `versions.torch`) that may differ; the table names those that do. Nothing allows an
    in-domain number beside another.
    """
    apart = differences(first, second)
    allowed = set(allow) - {"in_domain"}
    refused = {key: pair for key, pair in apart.items() if key not in allowed and key.split(".")[0] not in allowed}
    if refused:
        told = "; ".join(f"{key}: {_short(a)} and {_short(b)}" for key, (a, b) in refused.items())
        raise UserError(f"these results were not measured alike and cannot be compared: {told}")
    rows = [("", *names), ("metric", first.metric, second.metric)]
    for head, get in _ROWS:
        rows.append((head, get(first), get(second)))
    rows += [(f"differs: {key}", _short(a), _short(b)) for key, (a, b) in apart.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, *_warnings(first, second)])


_ROWS = (
    ("value", lambda r: f"{r.value:.6g}"),
    ("spread", lambda r: "-" if r.spread is None else f"{r.spread:.3g}"),
    ("95% interval", lambda r: "-" if r.interval is None else f"{r.interval[0]:.6g} .. {r.interval[1]:.6g}"),
    ("samples", lambda r: str(r.samples)),
    ("skipped", lambda r: str(r.skipped)),
)


def _warnings(first: Result, second: Result) -> list[str]:
    told = []
    if (
        first.interval
        and second.interval
        and max(first.interval[0], second.interval[0]) <= min(first.interval[1], second.interval[1])
    ):
        told.append("The intervals overlap: the difference may be noise.")
    sources = [result.fingerprint.get("features") for result in (first, second)]
    if any(isinstance(source, Mapping) and not source.get("verified") for source in sources):
        told.append("The feature network's weights are unverified: their hash is not one that we know.")
    if first.in_domain:
        told.append("In-domain: measured with networks trained on Diorama, not comparable with published numbers.")
    return told


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 24 else f"{text[:20]}..."
