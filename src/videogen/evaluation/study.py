"""The user study of section 4.4, built: a blinded page for the annotators, and the key that stays at home.

As in the paper, an annotator sees the videos that two systems made from one prompt, in random order, and answers two
questions: which is of better quality, and which matches the text better. With more than two systems every pair is compared.

The page is a folder that plays from a disk or any web server. Its content security policy allows its own script, style and
videos by their hashes and places and nothing else, so that no request can leave it. Every video is encoded anew in the same
way, so that neither metadata nor container nor codec tells who made it, and bears a random name; `key.json`, beside the
page's folder and not in it, says which is which. `study_report` joins it with the annotators' answers.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import random
import re
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from videogen.config import UserError
from videogen.evaluation.videos import Sampling, VideoFolderSamples, prompts_of
from videogen.files import staging
from videogen.generation import MAX_SEED
from videogen.video import MAX_FPS, MIN_FPS, Video, write_video

QUESTIONS: Mapping[str, str] = {
    "quality": "Which video is of better quality?",
    "match": "Which video matches the text better?",
}
KEY_FORMAT, ANSWERS_FORMAT = "videogen-study-key/1", "videogen-study-answers/1"
MAX_TRIALS = 10_000

_QUESTION_ID = re.compile(r"[a-z][a-z0-9_]{0,31}")


@dataclass(frozen=True)
class Study:
    """What `build_study` made. page: the index.html; trials: pairs to compare; remarks: what may give systems away."""

    page: Path
    key: Path
    trials: int
    videos: int
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class _Item:
    """One prompt, and where each system's video for it is among that system's videos."""

    name: str
    prompt: str
    places: Mapping[str, int]


Systems = Mapping[str, VideoFolderSamples]


def build_study(
    folders: Sequence[Path],
    output: Path,
    *,
    prompts: Path | None = None,
    questions: Mapping[str, str] = QUESTIONS,
    ties: bool = False,
    count: int | None = None,
    seed: int | None = None,
) -> Study:
    """Make output/public (the page) and output/key.json from two or more systems' folders of equally named videos.

    The first folder is the one that the report speaks of. prompts: see `videos.prompts_of`, for the names of the first folder;
    None: what the videos themselves say, or the text beside them. questions: id -> text; ties: "no difference" is an answer
    too; count: so many prompts, drawn by the seed (None: all); seed: 0..2^63-1, or None to draw one: a seed that annotators
    can guess lets them find out who made what.

    The folder appears whole or not at all. Raises UserError on folders that do not belong together, videos that cannot be
    read, prompts that are missing or disagree, and where `output` exists.
    """
    _check_request(output, questions, seed)
    rng = random.Random(secrets.randbits(63) if seed is None else seed)
    systems = _systems(folders)
    items = _items(systems, prompts)
    if count is not None:
        if not 1 <= count <= len(items):
            raise UserError(f"the folders share {len(items)} videos; {count} cannot be drawn from them")
        chosen = {item.name for item in rng.sample(items, count)}
        items = [item for item in items if item.name in chosen]
    pairs = len(systems) * (len(systems) - 1) // 2
    if len(items) * pairs > MAX_TRIALS:
        raise UserError(f"{len(items)} prompts in {pairs} pairs of systems are too many to compare: draw fewer with a count")
    trials, names = _deal(items, systems, rng)
    key: dict[str, Any] = {
        "format": KEY_FORMAT,
        "study": f"{rng.getrandbits(64):016x}",
        "systems": list(systems),
        "questions": dict(questions),
        "ties": ties,
        "trials": trials,
    }
    with staging(output) as folder:
        videos = folder / "study" / "public" / "videos"
        videos.mkdir(parents=True)
        key["videos"] = _write_videos(videos, items, systems, names)
        (videos.parent / "index.html").write_bytes(_page(key))
        (folder / "study" / "key.json").write_text(json.dumps(key, indent=1), encoding="utf-8")
        os.replace(folder / "study", output)
    page = output / "public" / "index.html"
    return Study(page, output / "key.json", len(trials), len(key["videos"]), _remarks(key["videos"], systems))


def _check_request(output: Path, questions: Mapping[str, str], seed: int | None) -> None:
    if os.path.lexists(output):
        raise UserError(f"{output} exists: a study is never replaced, as its key would be lost; choose another output")
    if not questions:
        raise UserError("a study needs a question")
    for name, text in questions.items():
        if not _QUESTION_ID.fullmatch(name) or not text.strip():
            raise UserError(f"a question is a short name (a-z, 0-9, _) with a text, not {name!r} with {text!r}")
    if seed is not None and not 0 <= seed <= MAX_SEED:
        raise UserError(f"seeds must lie in 0..{MAX_SEED}, not {seed}")


def _systems(folders: Sequence[Path]) -> dict[str, VideoFolderSamples]:
    """Each folder's videos, named by the shortest end of its path that no other folder shares."""
    places = [Path(os.path.abspath(folder)) for folder in folders]
    if len(places) < 2:
        raise UserError("a study compares two or more folders of videos")
    if len({place.resolve() for place in places}) < len(places):
        raise UserError("a folder is given twice: a system cannot be compared with itself")
    names = [_short_name(place, places) for place in places]
    return {name: VideoFolderSamples(folder, Sampling(None, 1, None)) for name, folder in zip(names, folders, strict=True)}


def _short_name(place: Path, places: Sequence[Path]) -> str:
    ends = (place.parts[-count:] for count in range(1, len(place.parts) + 1))
    return "/".join(next(end for end in ends if sum(other.parts[-len(end) :] == end for other in places) == 1))


def _items(systems: Systems, prompts: Path | None) -> list[_Item]:
    """The videos that all systems have, matched by their names without ending. Raises UserError where one lacks a video."""
    places = {system: _places(videos) for system, videos in systems.items()}
    first = next(iter(systems))
    for system, other in itertools.product(systems, repeat=2):
        if lacking := sorted(places[system].keys() - places[other].keys()):
            raise UserError(f"{systems[other].folder} has no video named {lacking[0]}, as {systems[system].folder} has")
    given = None if prompts is None else prompts_of(systems[first], prompts)
    items = []
    for name, place in places[first].items():
        here = {system: places[system][name] for system in systems}
        prompt = _own_prompt(name, here, systems) if given is None else given(place)
        if not prompt.strip():
            raise UserError(f"the prompt of {name} is empty")
        items.append(_Item(name, " ".join(prompt.split()), here))
    return items


def _places(videos: VideoFolderSamples) -> dict[str, int]:
    """Name without ending -> place."""
    places: dict[str, int] = {}
    for index, name in enumerate(videos.names):
        stem = name if (videos.folder / name).is_dir() else os.path.splitext(name)[0]
        if stem in places:
            raise UserError(f"{videos.folder} has two videos named {stem}: {videos.names[places[stem]]} and {name}")
        places[stem] = index
    return places


def _own_prompt(name: str, places: Mapping[str, int], systems: Systems) -> str:
    """What the systems' videos of one name say. One may be silent, but those that speak agree."""
    said: dict[str, str] = {}
    for system, place in places.items():
        try:
            said[" ".join(prompts_of(systems[system], None)(place).split())] = system
        except UserError as error:
            silence = error
    if not said:
        raise silence
    if len(said) > 1:
        (one, here), (other, there), *_ = said.items()
        raise UserError(f"{name} shows {one!r} in {here} but {other!r} in {there}: give the prompts, or rename the videos")
    return next(iter(said))


def _deal(
    items: Sequence[_Item], systems: Systems, rng: random.Random
) -> tuple[dict[str, dict[str, Any]], dict[tuple[str, str], str]]:
    """Trials by id, and the public name of each (system, item). Neither order nor names follow from who made a video."""
    names = {(system, item.name): f"{rng.getrandbits(64):016x}.mp4" for item in items for system in systems}
    combinations = [(item, pair) for item in items for pair in itertools.combinations(systems, 2)]
    rng.shuffle(combinations)
    trials = {}
    for number, (item, pair) in enumerate(combinations, 1):
        shown = [names[system, item.name] for system in rng.sample(pair, 2)]
        trials[f"t{number:0{len(str(len(combinations)))}d}"] = {"item": item.name, "prompt": item.prompt, "videos": shown}
    return trials, names


def _write_videos(
    folder: Path, items: Sequence[_Item], systems: Systems, names: Mapping[tuple[str, str], str]
) -> dict[str, dict[str, Any]]:
    """In the order of the public names, so that not even the files' times tell who made what."""
    places = {item.name: item.places for item in items}
    videos = {}
    for (system, item), name in sorted(names.items(), key=lambda entry: entry[1]):
        sample = systems[system].read(places[item][system])
        source = systems[system].folder / sample.name
        if sample.fps is None:
            raise UserError(f"nothing says how fast {source} plays: make it a video file")
        if not MIN_FPS <= sample.fps <= MAX_FPS:
            raise UserError(f"{source} has {sample.fps:g} frames a second; they must lie in {MIN_FPS}..{MAX_FPS:g}")
        write_video(Video(sample.frames, sample.fps), folder / name)
        videos[name] = {
            "system": system,
            "file": sample.name,
            "size": sample.source,
            "frames": len(sample.frames),
            "fps": sample.fps,
            "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
        }
    return videos


def _remarks(videos: Mapping[str, Mapping[str, Any]], systems: Systems) -> tuple[str, ...]:
    """What an annotator could tell the systems by."""
    remarks = []
    for what, look in (
        ("size", lambda video: video["size"]),
        ("duration", lambda video: f"{video['frames'] / video['fps']:.1f} s"),
        ("frame rate", lambda video: f"{video['fps']:g} fps"),
    ):
        seen = {name: {look(video) for video in videos.values() if video["system"] == name} for name in systems}
        if len({frozenset(values) for values in seen.values()}) > 1:
            told = "; ".join(f"{name}: {', '.join(sorted(values)[:3])}" for name, values in seen.items())
            remarks.append(f"the systems differ in {what}, by which they can be told apart ({told})")
    return tuple(remarks)


# The page


def _page(key: Mapping[str, Any]) -> bytes:
    """index.html: the templates and what an annotator may know. Prompts are data in it, never HTML."""
    template, style, script = (_template(name) for name in ("page.html", "page.css", "page.js"))
    public = {
        "format": ANSWERS_FORMAT,
        "study": key["study"],
        "ties": key["ties"],
        "questions": [{"id": name, "text": text} for name, text in key["questions"].items()],
        "trials": [{"id": name, "prompt": trial["prompt"], "videos": trial["videos"]} for name, trial in key["trials"].items()],
    }
    filled = string.Template(template).substitute(
        policy=_policy(style, script), style=style, script=script, study=_data(public)
    )
    return filled.encode("utf-8")


def _policy(style: str, script: str) -> str:
    """'self' means nothing to some browsers on a page from a disk, so its videos are allowed by file: as well."""
    return (
        f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; img-src data:; "
        "media-src 'self' file:; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode()}'"


def _data(value: Any) -> str:
    """JSON that can stand inside a script element: no character in it means anything to HTML."""
    text = json.dumps(value)  # ASCII only
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _template(name: str) -> str:
    return resources.files("videogen.evaluation").joinpath("study_page", name).read_text(encoding="utf-8")
