"""The user study of section 4.4, read: annotators' answers joined with the key into preference rates.

A rate is a share of all answers to a question about a pair of systems; with ties allowed the rest is "no difference". It
comes with a Wilson interval, which takes all answers for independent, and with one that resamples prompts, which does not and
is the honest one where few prompts got many answers each. Agreement between annotators is Krippendorff's alpha for nominal
data (Hayes and Krippendorff, 2007), as it allows any number of annotators and missing answers; beside it stands the share of
pairs of annotators who agree, because alpha is low by construction where nearly all answers are the same.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from videogen.config import UserError
from videogen.evaluation.result import Result, digest, versions
from videogen.evaluation.statistics import bootstrap, wilson
from videogen.evaluation.study import ANSWERS_FORMAT, KEY_FORMAT
from videogen.evaluation.study_figure import draw_preferences
from videogen.files import open_regular, staging
from videogen.video import check_output

_MAX_ANSWERS, _MAX_KEY = 1 << 24, 1 << 28  # bytes
_MAX_NAME = 80  # of an annotator, characters


@dataclass(frozen=True)
class Key:
    """Who made what. trials: id -> (name of the prompt's videos, prompt, the two videos); owner: video -> system."""

    study: str
    systems: tuple[str, ...]
    questions: Mapping[str, str]
    ties: bool
    trials: Mapping[str, tuple[str, str, frozenset[str]]]
    owner: Mapping[str, str]


@dataclass(frozen=True)
class Vote:
    """One answer. choice: "left", "right" or "same"; winner: the system preferred, None for "same"; pair: as in the key."""

    annotator: str
    item: str
    pair: tuple[str, str]
    question: str
    choice: str
    winner: str | None


@dataclass(frozen=True)
class Session:
    """One annotator's file. seconds: of each trial that has all its answers."""

    annotator: str
    seed: int
    votes: tuple[Vote, ...]
    seconds: tuple[float, ...]


def report_study(key: Path, answers: Sequence[Path], output: Path, *, overwrite: bool = False) -> Result:
    """Write `output` (.json) and, beside it, the picture of Figure 8 (.png).

    answers: annotators' files, or folders of them. The value is the share of answers to the first question that prefer the
    first system to whichever other one it was shown with; `details` has every pair and question. Raises UserError on files that
    are no whole answers to this study, on two of one annotator, and where the output exists (unless `overwrite`).
    """
    picture = output.with_suffix(".png")
    check_output(output, overwrite, endings=(".json",))
    check_output(picture, overwrite, endings=(".png",))
    known = read_key(key)
    files = [file for path in answers for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    if output.resolve() in {file.resolve() for file in (key, *files)}:
        raise UserError(f"{output} is what the report is made from; choose another output")
    sessions = read_sessions(files, known)
    comparisons = [
        _compare(pair, question, [vote for session in sessions for vote in session.votes], known)
        for pair in itertools.combinations(known.systems, 2)
        for question in known.questions
    ]
    result = _result(known, sessions, comparisons)
    with staging(output) as folder:
        draw_preferences(comparisons, _caption(result)).save(folder / "picture", format="PNG")
        result.write(folder / "result.json")
        os.replace(folder / "picture", picture)
        os.replace(folder / "result.json", output)
    return result


def describe_study(result: Result) -> str:
    """The report in lines of text."""
    lines = [_caption(result)]
    for entry in result.details["comparisons"]:
        first, second = entry["systems"]
        if not entry["answers"]:
            lines.append(f"{entry['question']}: no answers for {first} against {second}")
            continue
        low, high = entry["intervals"][first]
        tied = (
            f", {entry['no_difference'] / entry['answers']:.1%} no difference" if result.fingerprint["protocol"]["ties"] else ""
        )
        alpha = entry["agreement"]["krippendorff_alpha"]
        agreed = "alpha undefined" if alpha is None else f"alpha {alpha:.2f}"
        lines.append(
            f"{entry['question']}: {first} {entry['rates'][first]:.1%} (95% interval {low:.1%} to {high:.1%}), "
            f"{second} {entry['rates'][second]:.1%}{tied}; {entry['answers']} answers, {agreed}"
        )
    lines += [f"note: {remark}" for remark in result.details["remarks"]]
    return "\n".join(lines)


# Files


def read_key(path: Path) -> Key:
    """A study's key.json. Raises UserError."""
    found = _load(path, _MAX_KEY)
    try:
        if found["format"] != KEY_FORMAT or not found["questions"]:
            raise ValueError
        trials = {
            str(name): (str(trial["item"]), str(trial["prompt"]), frozenset(map(str, trial["videos"])))
            for name, trial in found["trials"].items()
        }
        owner = {str(name): str(video["system"]) for name, video in found["videos"].items()}
        questions = {str(name): str(text) for name, text in found["questions"].items()}
        key = Key(str(found["study"]), tuple(map(str, found["systems"])), questions, found["ties"] is True, trials, owner)
        for _, _, videos in trials.values():
            first, second = (owner[video] for video in videos)
            if first == second or not {first, second} <= set(key.systems):
                raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path} is not the key.json of a study") from None
    return key


def read_sessions(files: Sequence[Path], key: Key) -> list[Session]:
    """In the order of the annotators' names. Raises UserError on a bad file, naming it, and on two of one annotator."""
    if not files:
        raise UserError("no answers: give the files that annotators saved, or a folder of them")
    sessions: dict[str, tuple[Path, Session]] = {}
    seeds: dict[int, Path] = {}
    for file in files:
        session = read_session(file, key)
        name = session.annotator.casefold()
        if name in sessions:
            raise UserError(f"{file} and {sessions[name][0]} are both by {session.annotator}: keep one of them")
        if session.seed in seeds:
            raise UserError(f"{file} and {seeds[session.seed]} are copies of one session under two names: keep one of them")
        sessions[name], seeds[session.seed] = (file, session), file
    found = [sessions[name][1] for name in sorted(sessions)]
    if not any(session.votes for session in found):
        raise UserError("there is no answer in these files")
    return found


def read_session(path: Path, key: Key) -> Session:
    """One annotator's answers, every part of them checked against the key. Raises UserError, naming the file."""
    found = _load(path, _MAX_ANSWERS)
    if not isinstance(found, dict) or found.get("format") != ANSWERS_FORMAT:
        raise UserError(f"{path} is not a file of answers to a study")
    if found.get("study") != key.study:
        raise UserError(f"{path} answers another study ({str(found.get('study'))[:32]}) than the key's ({key.study})")
    annotator, seed, trials = found.get("annotator"), found.get("seed"), found.get("trials")
    if not isinstance(annotator, str) or not 0 < len(annotator.strip()) <= _MAX_NAME:
        raise UserError(f"{path} does not name its annotator")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise UserError(f"{path} has no valid seed")
    if not isinstance(trials, list):
        raise UserError(f"{path} has no list of trials")
    votes: list[Vote] = []
    seconds: list[float] = []
    seen: set[str] = set()
    for number, trial in enumerate(trials, 1):
        try:
            more = _votes(annotator.strip(), trial, key, seen)
            duration = _seconds(trial["seconds"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            why = str(error) if type(error) is ValueError else "something is missing or of the wrong type"
            raise UserError(f"{path}: trial {number} is malformed: {why}") from None
        votes += more
        seconds += [duration] if len(more) == len(key.questions) else []
    return Session(annotator.strip(), seed, tuple(votes), tuple(seconds))


def _votes(annotator: str, trial: Mapping[str, Any], key: Key, seen: set[str]) -> list[Vote]:
    """Of one trial: at most one a question. Raises ValueError and what looking into the wrong type raises."""
    name = trial["trial"]
    if name not in key.trials or name in seen:
        raise ValueError(f"{str(name)[:40]!r} {'comes twice' if name in seen else 'is no trial of this study'}")
    seen.add(name)
    item, _, videos = key.trials[name]
    sides = {"left": trial["left"], "right": trial["right"]}
    if set(sides.values()) != videos:
        raise ValueError("its videos are not those of the key")
    owners = {side: key.owner[video] for side, video in sides.items()}
    pair = tuple(system for system in key.systems if system in owners.values())
    votes = []
    for question, choice in trial["answers"].items():
        if question not in key.questions:
            raise ValueError(f"{question[:40]!r} is no question of this study")
        if choice not in (("left", "right", "same") if key.ties else ("left", "right")):
            raise ValueError(f"{str(choice)[:40]!r} is no answer")
        votes.append(Vote(annotator, item, (pair[0], pair[1]), question, choice, owners.get(choice)))
    return votes


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise ValueError("its duration is no number of seconds")
    return float(value)


def _load(path: Path, most: int) -> Any:
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise UserError(f"{path} is larger than {most >> 20} MiB")
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not valid JSON; was it cut off?") from None


# Counting


def _compare(pair: tuple[str, str], question: str, votes: Sequence[Vote], key: Key) -> dict[str, Any]:
    """One pair of systems in one question: JSON types only."""
    mine = [vote for vote in votes if vote.pair == pair and vote.question == question]
    wins = Counter(vote.winner for vote in mine)
    units: dict[str, list[str | None]] = {}
    for vote in mine:
        units.setdefault(vote.item, []).append(vote.winner)
    return {
        "systems": list(pair),
        "question": question,
        "text": key.questions[question],
        "answers": len(mine),
        "prompts": len(units),
        "preferred": {system: wins[system] for system in pair},
        "no_difference": wins[None],
        "rates": {system: wins[system] / len(mine) if mine else None for system in pair},
        "intervals": {system: wilson(wins[system], len(mine)) for system in pair},
        "intervals_over_prompts": {system: _interval_over_prompts(system, units) for system in pair},
        "agreement": {
            "krippendorff_alpha": krippendorff_alpha(units.values()),
            "agreeing_pairs": agreeing_pairs(units.values()),
        },
    }


def _interval_over_prompts(system: str, units: Mapping[str, Sequence[str | None]]) -> tuple[float, float] | None:
    """Of the rate, by resampling prompts with all their answers; None below two prompts."""
    counts = np.array([[winners.count(system), len(winners)] for _, winners in sorted(units.items())])
    if len(counts) < 2:
        return None
    return bootstrap(counts, lambda drawn: float(drawn[:, 0].sum() / drawn[:, 1].sum()), seed=0)


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> float | None:
    """Krippendorff's alpha for nominal data: 1 is agreement, 0 is what chance would give, below is systematic disagreement.

    units: the values that each unit got, one an annotator who judged it; units with one value say nothing and are left out.
    None where there is nothing to compare, or where all values are the same. Source: Hayes and Krippendorff, "Answering the
    Call for a Standard Reliability Measure for Coding Data", Communication Methods and Measures 1(1), 2007.
    """
    counts = [Counter(values) for values in units if len(values) > 1]
    totals = sum(counts, Counter())
    n = totals.total()
    expected = n * n - sum(count * count for count in totals.values())
    if not expected:
        return None
    observed = sum((c.total() ** 2 - sum(v * v for v in c.values())) / (c.total() - 1) for c in counts)
    return 1 - (n - 1) * observed / expected


def agreeing_pairs(units: Iterable[Sequence[Hashable]]) -> float | None:
    """The share of equal pairs among all pairs of values that a unit got; None where there is no pair."""
    counts = [Counter(values) for values in units]
    pairs = sum(c.total() * (c.total() - 1) for c in counts)
    return sum(v * (v - 1) for c in counts for v in c.values()) / pairs if pairs else None


def _result(key: Key, sessions: Sequence[Session], comparisons: Sequence[Mapping[str, Any]]) -> Result:
    votes = [vote for session in sessions for vote in session.votes]
    first, question = key.systems[0], next(iter(key.questions))
    headline = [vote for vote in votes if vote.question == question and first in vote.pair]
    if not headline:
        raise UserError(f"nobody answered {question!r} about {first}: there is nothing to report yet")
    wins = sum(vote.winner == first for vote in headline)
    prompts = sorted({prompt for _, prompt, _ in key.trials.values()})
    decided = [vote for vote in votes if vote.choice != "same"]
    return Result(
        metric="user_study",
        value=wins / len(headline),
        spread=None,
        interval=wilson(wins, len(headline)),
        samples=len(headline),
        skipped=0,
        fingerprint={
            "prompts_sha256": digest(prompts),
            "count": len(prompts),
            "protocol": {"systems": list(key.systems), "questions": dict(key.questions), "ties": key.ties},
            "versions": versions(),
        },
        details={
            "value": f"share of answers to {question!r} that prefer {first!r} to the other system",
            "study": key.study,
            "comparisons": list(comparisons),
            "annotators": [_annotator(session, key) for session in sessions],
            "left_share": sum(vote.choice == "left" for vote in decided) / len(decided) if decided else None,
            "remarks": _remarks(sessions, decided, key),
        },
    )


def _annotator(session: Session, key: Key) -> dict[str, Any]:
    return {
        "annotator": session.annotator,
        "seed": session.seed,
        "complete_trials": len(session.seconds),
        "trials": len(key.trials),
        "median_seconds": statistics.median(session.seconds) if session.seconds else None,
    }


def _remarks(sessions: Sequence[Session], decided: Sequence[Vote], key: Key) -> list[str]:
    """What a reader of the rates should know."""
    remarks = []
    partial = [session.annotator for session in sessions if len(session.seconds) < len(key.trials)]
    if partial:
        remarks.append(f"{len(partial)} of {len(sessions)} annotators left pairs open: {', '.join(partial[:5])}")
    left = sum(vote.choice == "left" for vote in decided)
    if decided and not wilson(left, len(decided))[0] <= 0.5 <= wilson(left, len(decided))[1]:
        remarks.append(f"one side was preferred whatever was there: {left / len(decided):.0%} chose the left video")
    return remarks


def _caption(result: Result) -> str:
    people, prompts = len(result.details["annotators"]), result.fingerprint["count"]
    return f"{people} annotator{'s' * (people != 1)}, {prompts} prompt{'s' * (prompts != 1)}"
