"""The paper's benchmarks as lists of prompts (section 4.1): UCF-101 (IS, FVD) and MSR-VTT (CLIPSIM).

The lists themselves are not part of this package; docs/evaluation.md says where they come from. A list whose hash is not the
known one works, and is marked unverified.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from videogen.config import UserError
from videogen.evaluation.videos import read_prompts
from videogen.files import open_regular

MSRVTT_CAPTIONS = 59_800
UCF101_CLASSES = 101
UCF101_VIDEOS = 10_000  # ours, as Make-A-Video (arXiv 2209.14792), which the paper compares with; the paper gives no number
KNOWN = {
    "246ba561623355d6cfc3e13f605132d8662dba472a82ef4d1d90bcd37c198c66": "MSR-VTT test captions",
    "e2bcba27898d6fa9b6363de06242a278ed175367befc3d55f820301b1401af88": "UCF-101 prompts of PYoCo",
}
"""SHA-256 of the prompts joined by "\\n" -> what they are."""

PAPER: Mapping[str, Mapping[str, str]] = {
    "ucf101 zero-shot": {"inception_score": "71.61 +- 0.24", "frechet_video_distance": "554 +- 23"},
    "ucf101 fine-tuned": {"inception_score": "82.78 +- 0.34", "frechet_video_distance": "345 +- 15"},
    "msrvtt": {"clip_similarity": "0.3127"},
    "without reference": {"inception_score": "26.64 +- 0.47", "clip_similarity": "0.2534 (1,000 captions)"},
}
"""What the paper reports (tables 1 to 3): for reference only, its protocol is not published to the last detail."""

_MAX_ANNOTATION = 1 << 28  # bytes, unpacked
_LISTED = re.compile(r"(?P<folder>[^/\s]+)/\S+\.avi(\s+\d+)?")


@dataclass(frozen=True)
class Prompts:
    """What to generate: video i shows `texts[i]`. name, sha256, verified: of the list that the texts were taken from."""

    texts: tuple[str, ...]
    name: str
    sha256: str
    verified: bool
    labels: tuple[int, ...] = field(default=(), repr=False)  # UCF-101: the class of each video, 0..100

    @classmethod
    def of(cls, texts: Sequence[str], name: str) -> Prompts:
        """The list as it is, under its known name where its hash is known."""
        digest = prompts_hash(texts)
        return cls(tuple(texts), KNOWN.get(digest, name), digest, digest in KNOWN)

    def describe(self) -> dict[str, object]:
        """For the protocol fingerprint: of the list and of the prompts that were really used."""
        return {
            "list": self.name,
            "list_sha256": self.sha256,
            "list_verified": self.verified,
            "sha256": prompts_hash(self.texts),
            "count": len(self.texts),
        }


def prompts_hash(texts: Sequence[str]) -> str:
    """SHA-256 of the texts joined by a line feed, UTF-8."""
    return hashlib.sha256("\n".join(texts).encode("utf-8", "replace")).hexdigest()


# MSR-VTT


def msrvtt(path: Path, count: int | None = None) -> Prompts:
    """The test captions in the order of their `sen_id`, or `count` of them, evenly spaced (Table 3 has 1,000).

    path: the official annotation, .json or .zip. Raises UserError.
    """
    captions = read_msrvtt(path)
    listed = Prompts.of(captions, f"captions of {path.name}")
    if count is None or count == len(captions):
        return listed
    if not 1 <= count <= len(captions):
        raise UserError(f"{path} has {len(captions)} captions: cannot take {count}")
    chosen = tuple(captions[index * len(captions) // count] for index in range(count))
    return Prompts(chosen, listed.name, listed.sha256, listed.verified)


def read_msrvtt(path: Path) -> list[str]:
    """All captions of an annotation file in MSR-VTT's layout, sorted by `sen_id`. Raises UserError."""
    try:
        record = json.loads(_annotation(path))
        rows = [(int(row["sen_id"]), str(row["caption"])) for row in record["sentences"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(
            f'{path} is no annotation of MSR-VTT: expected {{"sentences": [{{"sen_id", "caption"}}, ...]}} ({error!r:.80})'
        ) from None
    if not rows:
        raise UserError(f"{path} holds no caption")
    return [caption for _, caption in sorted(rows)]


def _annotation(path: Path) -> bytes:
    with open_regular(path) as file:
        data = file.read(_MAX_ANNOTATION + 1)
    if path.suffix.lower() == ".zip":
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                members = [entry for entry in archive.infolist() if entry.filename.endswith(".json")]
                if len(members) != 1:
                    raise UserError(f"{path} holds {len(members)} .json files; expected one annotation")
                with archive.open(members[0]) as member:
                    data = member.read(_MAX_ANNOTATION + 1)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError) as error:
            raise UserError(f"{path} is no zip file that can be read: {error}") from None
    if len(data) > _MAX_ANNOTATION:
        raise UserError(f"{path} is larger than {_MAX_ANNOTATION >> 20} MiB")
    return data


# UCF-101


def ucf101(path: Path, count: int = UCF101_VIDEOS, *, classes: Path | None = None, split: Path | None = None) -> Prompts:
    """`count` prompts of a list with one line a class, in class order, mixed so that any beginning is balanced.

    path: the list PYoCo published, your own, or classInd.txt (then the class names are the prompts). split, with classes
    (classInd.txt): a list such as trainlist01.txt, whose distribution over classes is followed; else all classes are equal.
    A larger count begins with the prompts of a smaller one, so that a run can be extended. Raises UserError.
    """
    lines = _class_prompts(path)
    if not 1 <= count <= 10_000_000:
        raise UserError(f"the number of videos must lie in 1..10,000,000, not {count}")
    weights = [1] * len(lines) if split is None else _class_sizes(split, classes)
    labels = interleave(weights, count)
    listed = Prompts.of(lines, f"UCF-101 prompts of {path.name}")
    return Prompts(tuple(lines[label] for label in labels), listed.name, listed.sha256, listed.verified, tuple(labels))


def _class_prompts(path: Path) -> list[str]:
    lines = read_prompts(path)
    if len(lines) != UCF101_CLASSES:
        raise UserError(
            f"{path} has {len(lines)} lines; UCF-101 has {UCF101_CLASSES} classes, one prompt a line in class order"
        )
    if all(re.fullmatch(r"\d+ \w+", line) for line in lines):
        return [spoken(line.split()[1]) for line in lines]
    return lines


def spoken(name: str) -> str:
    """A class name as words: "ApplyEyeMakeup" -> "apply eye makeup"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name).lower()


def read_classes(path: Path) -> list[str]:
    """The class names of classInd.txt ("1 ApplyEyeMakeup" a line), in order. Raises UserError."""
    rows = [line.split() for line in read_prompts(path)]
    if len(rows) != UCF101_CLASSES or any(len(row) != 2 or row[0] != str(i) for i, row in enumerate(rows, start=1)):
        raise UserError(f"{path} is no class index of UCF-101: expected {UCF101_CLASSES} lines such as '1 ApplyEyeMakeup'")
    return [row[1] for row in rows]


def read_split(path: Path) -> list[str]:
    """The videos of a split list (trainlist01.txt or testlist01.txt), relative to UCF-101's folder. Raises UserError."""
    lines = read_prompts(path)
    if odd := next((line for line in lines if not _LISTED.fullmatch(line)), None):
        raise UserError(f"{path} is no split of UCF-101: {odd[:60]!r} is not such as 'Archery/v_Archery_g01_c01.avi'")
    return [line.split()[0] for line in lines]


def _class_sizes(split: Path, classes: Path | None) -> list[int]:
    if classes is None:
        raise UserError("a split needs the class index too: give --classes classInd.txt")
    sizes = Counter(name.split("/")[0] for name in read_split(split))
    names = read_classes(classes)
    if unknown := sizes.keys() - set(names):
        raise UserError(f"{split} lists the class {min(unknown)}, which {classes} does not know")
    return [sizes[name] for name in names]


def interleave(weights: Sequence[int], count: int) -> list[int]:
    """`count` indices in proportion to `weights`, each next one being that which lags behind most (ties: the lowest)."""
    total, given, order = sum(weights), [0] * len(weights), []
    for step in range(1, count + 1):
        label = max(range(len(weights)), key=lambda index: weights[index] * step - given[index] * total)
        given[label] += 1
        order.append(label)
    return order
