"""Statements about what the answers of a user study become (section 4.4, Figure 8)."""

from __future__ import annotations

import itertools
import json
import math
import random
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from videogen.config import UserError
from videogen.evaluation.result import read_result
from videogen.evaluation.study_report import (
    agreeing_pairs,
    describe_study,
    krippendorff_alpha,
    report_study,
)

SYSTEMS = ["ours", "theirs", "baseline"]
Choose = Callable[[int, str, str], str]  # (annotator, item, question) -> the winning system or "same"


def write_key(path: Path, systems: Sequence[str] = SYSTEMS[:2], items: int = 30, ties: bool = False) -> dict[str, Any]:
    """A key without videos: the report needs none. Which system's video is named first changes from trial to trial."""
    videos = {f"{system}-{i}.mp4": {"system": system} for system in systems for i in range(items)}
    trials: dict[str, Any] = {}
    for i, (first, second) in itertools.product(range(items), itertools.combinations(systems, 2)):
        pair = [f"{first}-{i}.mp4", f"{second}-{i}.mp4"]
        trials[f"t{len(trials)}"] = {"item": str(i), "prompt": f"prompt {i}", "videos": pair if i % 2 else pair[::-1]}
    key = {
        "format": "videogen-study-key/1",
        "study": "5" * 16,
        "systems": list(systems),
        "questions": {"quality": "Which is better?", "match": "Which matches?"},
        "ties": ties,
        "trials": trials,
        "videos": videos,
    }
    path.write_text(json.dumps(key))
    return key


def answers_of(key: dict[str, Any], annotator: int, choose: Choose) -> dict[str, Any]:
    """As the page saves them: trials and sides in a random order."""
    rng = random.Random(annotator)
    trials = []
    for name in rng.sample(sorted(key["trials"]), len(key["trials"])):
        trial = key["trials"][name]
        left, right = rng.sample(trial["videos"], 2)
        sides = {key["videos"][left]["system"]: "left", key["videos"][right]["system"]: "right", "same": "same"}
        given = {question: sides[choose(annotator, trial["item"], question)] for question in key["questions"]}
        trials.append({"trial": name, "left": left, "right": right, "answers": given, "seconds": 5.0, "at": "2026-01-01"})
    return {
        "format": "videogen-study-answers/1",
        "study": key["study"],
        "annotator": f"annotator {annotator}",
        "seed": annotator,
        "started": None,
        "finished": None,
        "trials": trials,
    }


def write_study(folder: Path, annotators: int, choose: Choose, **options: Any) -> tuple[Path, Path]:
    """The key's path, and the folder of the answers."""
    key = write_key(folder / "key.json", **options)
    (folder / "answers").mkdir()
    for annotator in range(annotators):
        (folder / "answers" / f"{annotator}.json").write_text(json.dumps(answers_of(key, annotator, choose)))
    return folder / "key.json", folder / "answers"


def test_the_papers_numbers_come_out_of_the_papers_design(tmp_path: Path) -> None:
    """17 annotators, 30 prompts; "ours" is preferred in 459 of 510 answers on quality and in 255 on the match."""

    def choose(annotator: int, item: str, question: str) -> str:
        place = annotator * 30 + int(item)
        return "ours" if (place % 10 if question == "quality" else place % 2) else "theirs"

    key, answers = write_study(tmp_path, 17, choose)
    result = report_study(key, [answers], tmp_path / "report.json")
    assert result.value == pytest.approx(0.9, abs=1e-12)
    assert result.samples == 510
    z, p, n = 1.959963984540054, 0.9, 510
    reach = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    assert result.interval == pytest.approx((centre - reach, centre + reach), abs=1e-12)
    quality, match = result.details["comparisons"]
    assert quality["preferred"] == {"ours": 459, "theirs": 51}
    assert match["rates"] == {"ours": 0.5, "theirs": 0.5}
    assert read_result(tmp_path / "report.json").value == result.value
    assert "quality: ours 90.0%" in describe_study(read_result(tmp_path / "report.json"))
    assert [entry["complete_trials"] for entry in result.details["annotators"]] == [30] * 17
    assert {entry["median_seconds"] for entry in result.details["annotators"]} == {5.0}
    assert result.details["remarks"] == []


def test_an_answer_counts_for_the_system_and_not_for_the_side(tmp_path: Path) -> None:
    key, answers = write_study(tmp_path, 3, lambda annotator, item, question: "ours" if question == "quality" else "theirs")
    quality, match = report_study(key, [answers], tmp_path / "report.json").details["comparisons"]
    assert quality["rates"] == {"ours": 1.0, "theirs": 0.0}
    assert match["rates"] == {"ours": 0.0, "theirs": 1.0}
    assert quality["agreement"] == {"krippendorff_alpha": None, "agreeing_pairs": 1.0}


def test_ties_are_answers_of_their_own(tmp_path: Path) -> None:
    def choose(annotator: int, item: str, question: str) -> str:
        return ("ours", "theirs", "same", "same")[(annotator + int(item)) % 4]

    key, answers = write_study(tmp_path, 4, choose, ties=True)
    entry = report_study(key, [answers], tmp_path / "report.json").details["comparisons"][0]
    assert (entry["preferred"], entry["no_difference"]) == ({"ours": 30, "theirs": 30}, 60)
    assert entry["rates"] == {"ours": 0.25, "theirs": 0.25}
    assert entry["agreement"]["agreeing_pairs"] == pytest.approx(1 / 6)  # of four annotators two say "same"
    low, high = entry["intervals_over_prompts"]["ours"]
    assert low == high == 0.25  # every prompt got the same answers: resampling prompts changes nothing


def test_three_systems_give_a_row_a_pair_and_the_value_is_the_firsts(tmp_path: Path) -> None:
    better = {"ours": 2, "theirs": 1, "baseline": 0}
    key = write_key(tmp_path / "key.json", SYSTEMS, items=4)
    session = answers_of(key, 0, lambda *_: "same")
    for trial in session["trials"]:
        owner = {side: key["videos"][trial[side]]["system"] for side in ("left", "right")}
        trial["answers"] = {"quality": max(owner, key=lambda side: better[owner[side]])}
    (tmp_path / "a.json").write_text(json.dumps(session))
    result = report_study(tmp_path / "key.json", [tmp_path / "a.json"], tmp_path / "report.json")
    entries = [entry for entry in result.details["comparisons"] if entry["question"] == "quality"]
    assert [entry["systems"] for entry in entries] == [list(pair) for pair in itertools.combinations(SYSTEMS, 2)]
    assert all(entry["rates"][entry["systems"][0]] == 1.0 for entry in entries)
    assert (result.value, result.samples) == (1.0, 8)
    unanswered = [entry for entry in result.details["comparisons"] if entry["question"] == "match"]
    assert all(entry["answers"] == 0 and set(entry["rates"].values()) == {None} for entry in unanswered)
    assert result.details["annotators"][0]["complete_trials"] == 0
    assert "1 of 1 annotators left pairs open" in result.details["remarks"][0]


def test_somebody_who_always_takes_the_left_is_noticed(tmp_path: Path) -> None:
    key = write_key(tmp_path / "key.json")
    session = answers_of(key, 0, lambda *_: "ours")
    for trial in session["trials"]:
        trial["answers"] = dict.fromkeys(key["questions"], "left")
    (tmp_path / "a.json").write_text(json.dumps(session))
    result = report_study(tmp_path / "key.json", [tmp_path / "a.json"], tmp_path / "report.json")
    assert result.details["left_share"] == 1.0
    assert "100% chose the left" in result.details["remarks"][0]


# Agreement


def fleiss_kappa(units: Sequence[Sequence[str]]) -> float:
    """Fleiss (1971), for as many values in each unit."""
    raters = len(units[0])
    within = [(sum(v * v for v in Counter(unit).values()) - raters) / (raters * (raters - 1)) for unit in units]
    shares = Counter(value for unit in units for value in unit)
    chance = sum((count / (raters * len(units))) ** 2 for count in shares.values())
    return (statistics.fmean(within) - chance) / (1 - chance)


def test_alpha_of_krippendorffs_published_example() -> None:
    """Twelve units, four observers, missing values: 0.743 for nominal data (Krippendorff, "Computing Alpha", example C)."""
    rows = (
        (1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None),
        (1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3),
        (None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None),
        (1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None),
    )
    units = [[value for value in unit if value is not None] for unit in zip(*rows, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)


@pytest.mark.parametrize("seed", range(5))
def test_alpha_is_fleiss_kappa_but_for_its_small_sample_term(seed: int) -> None:
    """Where nothing is missing, 1 - alpha = (1 - kappa) (n - 1) / n with n values in all."""
    rng = random.Random(seed)
    units = [[rng.choice("ab" if i % 3 else "aac") for _ in range(5)] for i in range(12)]
    alpha = krippendorff_alpha(units)
    assert alpha is not None
    assert 1 - alpha == pytest.approx((1 - fleiss_kappa(units)) * 59 / 60, abs=1e-12)


def test_alpha_at_its_ends() -> None:
    assert krippendorff_alpha(["aaa", "bbb"]) == 1.0
    assert krippendorff_alpha(["ab", "ab"]) == pytest.approx(-0.5)  # 1 - (4 - 1) * 4 / 8
    assert krippendorff_alpha(["aaa", "aaa"]) is None
    assert krippendorff_alpha(["a", "b"]) is None
    assert krippendorff_alpha([]) is None
    noise = np.random.default_rng(0).choice(list("ab"), size=(4000, 5)).tolist()
    assert krippendorff_alpha(noise) == pytest.approx(0, abs=0.02)


def test_agreeing_pairs_are_counted() -> None:
    assert agreeing_pairs(["aab", "bb"]) == pytest.approx((2 + 2) / (6 + 2))
    assert agreeing_pairs(["a"]) is None


# The picture


def test_the_bars_are_as_long_as_the_shares(tmp_path: Path) -> None:
    def choose(annotator: int, item: str, question: str) -> str:
        return "ours" if int(item) < (12 if question == "quality" else 3) else "theirs" if int(item) < 20 else "same"

    key, answers = write_study(tmp_path, 2, choose, ties=True)
    report_study(key, [answers], tmp_path / "report.json")
    with Image.open(tmp_path / "report.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    colours = {"ours": (0x1D, 0x67, 0x63), "same": (0xD5, 0xD8, 0xD6), "theirs": (0xD8, 0xA3, 0x5D)}
    ours = (pixels == colours["ours"]).all(-1).sum(1)
    span = 2 * (860 - 2 * 36 - 120)
    lengths = [count for count, _ in itertools.groupby(ours[ours > 60])]
    assert lengths[0] == pytest.approx(span * 12 / 30, abs=1)
    assert lengths[-1] == pytest.approx(span * 3 / 30, abs=1)
    top = int(np.argmax(ours > 60))
    for name, share in (("ours", 12), ("same", 10), ("theirs", 8)):
        assert (pixels[top] == colours[name]).all(-1).sum() == pytest.approx(span * share / 30, abs=1), name


# Files that are no answers


def change(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda session: {**session, **values}


def change_trial(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda session: {**session, "trials": [{**session["trials"][0], **values}]}


BAD = [
    (lambda session: [session], "not a file of answers"),
    (change(format="videogen-study-answers/2"), "not a file of answers"),
    (change(study="6" * 16), r"answers another study \(6666666666666666\)"),
    (change(annotator="  "), "does not name its annotator"),
    (change(annotator=7), "does not name its annotator"),
    (change(annotator="x" * 81), "does not name its annotator"),
    (change(seed=-1), "no valid seed"),
    (change(seed=True), "no valid seed"),
    (change(trials={}), "no list of trials"),
    (change(trials=[7]), "trial 1 is malformed"),
    (change(trials=[{}]), "trial 1 is malformed: something is missing"),
    (change(trials=[]), "there is no answer in these files"),
    (lambda session: {**session, "trials": session["trials"][:1] * 2}, "trial 2 is malformed: 't[0-9]+' comes twice"),
    (change_trial(trial="t99"), "'t99' is no trial of this study"),
    (change_trial(trial=["t1"]), "trial 1 is malformed"),
    (change_trial(left="other.mp4"), "its videos are not those of the key"),
    (change_trial(answers={"quality": "same"}), "'same' is no answer"),
    (change_trial(answers={"quality": None}), "'None' is no answer"),
    (change_trial(answers={"beauty": "left"}), "'beauty' is no question"),
    (change_trial(answers=["left"]), "trial 1 is malformed"),
    (change_trial(answers={"match": "left"}), "nobody answered 'quality'"),
    (change_trial(seconds=-1), "no number of seconds"),
    (change_trial(seconds="5"), "no number of seconds"),
    (change_trial(seconds=float("nan")), "no number of seconds"),
]


@pytest.mark.parametrize(("damage", "message"), BAD)
def test_malformed_answers_are_refused_in_one_line(
    tmp_path: Path, damage: Callable[[dict[str, Any]], Any], message: str
) -> None:
    key = write_key(tmp_path / "key.json", items=3)
    (tmp_path / "a.json").write_text(json.dumps(damage(answers_of(key, 0, lambda *_: "ours"))))
    with pytest.raises(UserError, match=message) as caught:
        report_study(tmp_path / "key.json", [tmp_path / "a.json"], tmp_path / "report.json")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "key.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "not valid JSON"), ('{"format": ', "was it cut off"), ("[" * 100_000, "not valid JSON"), ("\xff", "not valid JSON")],
)
def test_damaged_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    write_key(tmp_path / "key.json", items=3)
    (tmp_path / "a.json").write_text(content, encoding="latin-1")
    for key, answers in ((tmp_path / "key.json", tmp_path / "a.json"), (tmp_path / "a.json", tmp_path / "key.json")):
        with pytest.raises(UserError, match=message):
            report_study(key, [answers], tmp_path / "report.json")


@pytest.mark.parametrize(
    "damage",
    [
        {"format": "videogen-study-answers/1"},
        {"questions": {}},
        {"trials": {"t0": {"item": "0", "prompt": "p", "videos": ["ours-0.mp4"]}}},
        {"trials": {"t0": {"item": "0", "prompt": "p", "videos": ["ours-0.mp4", "ours-1.mp4"]}}},
        {"trials": {"t0": {"item": "0", "prompt": "p", "videos": ["ours-0.mp4", "nobody.mp4"]}}},
        {"trials": []},
        {"videos": None},
        {"systems": ["ours", "others"]},
    ],
)
def test_a_damaged_key_is_refused(tmp_path: Path, damage: dict[str, Any]) -> None:
    key = write_key(tmp_path / "key.json", items=3)
    (tmp_path / "a.json").write_text(json.dumps(answers_of(key, 0, lambda *_: "ours")))
    (tmp_path / "key.json").write_text(json.dumps({**key, **damage}))
    with pytest.raises(UserError, match=r"key.json is not the key.json of a study"):
        report_study(tmp_path / "key.json", [tmp_path / "a.json"], tmp_path / "report.json")


def test_two_files_of_one_annotator_are_refused(tmp_path: Path) -> None:
    key, answers = write_study(tmp_path, 2, lambda *_: "ours", items=3)
    session = json.loads((answers / "0.json").read_text())
    (answers / "2.json").write_text(json.dumps({**session, "annotator": "Annotator 0 ", "seed": 77}))
    with pytest.raises(UserError, match=r"2.json and .*0.json are both by Annotator 0: keep one"):
        report_study(key, [answers], tmp_path / "report.json")
    (answers / "2.json").write_text(json.dumps({**session, "annotator": "another"}))
    with pytest.raises(UserError, match="copies of one session under two names"):
        report_study(key, [answers], tmp_path / "report.json")


def test_outputs_are_kept_and_sources_are_never_replaced(tmp_path: Path) -> None:
    key, answers = write_study(tmp_path, 1, lambda *_: "ours", items=3)
    report_study(key, [answers], tmp_path / "report.json")
    with pytest.raises(UserError, match=r"report.json exists; choose another output or give --overwrite"):
        report_study(key, [answers], tmp_path / "report.json")
    report_study(key, [answers], tmp_path / "report.json", overwrite=True)
    for source in (key, answers / "0.json"):
        with pytest.raises(UserError, match="is what the report is made from"):
            report_study(key, [answers], source, overwrite=True)
    with pytest.raises(UserError, match=r"unknown ending '\.txt'"):
        report_study(key, [answers], tmp_path / "report.txt")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="no answers: give the files"):
        report_study(key, [tmp_path / "none"], tmp_path / "other.json")
