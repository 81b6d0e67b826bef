"""Statements about the lists of UCF-101 and MSR-VTT: their order, hashes, classes and counts."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from videogen.config import UserError
from videogen.evaluation.benchmarks import (
    MSRVTT_CAPTIONS,
    interleave,
    msrvtt,
    prompts_hash,
    read_classes,
    read_split,
    spoken,
    ucf101,
)

LISTS = Path(__file__).resolve().parents[3] / "shared" / "data" / "eval"
real_lists = pytest.mark.skipif(not LISTS.is_dir(), reason="the real lists do not lie beside this checkout")
ANNOTATION = LISTS / "msrvtt_test_videodatainfo.json.zip"


@real_lists
def test_the_real_captions_are_known() -> None:
    captions = msrvtt(ANNOTATION)
    assert (len(captions.texts), len(set(captions.texts))) == (MSRVTT_CAPTIONS, 51_582)
    assert captions.sha256 == "246ba561623355d6cfc3e13f605132d8662dba472a82ef4d1d90bcd37c198c66"
    assert (captions.name, captions.verified) == ("MSR-VTT test captions", True)


@real_lists
def test_a_thousand_of_the_captions_say_where_they_come_from() -> None:
    few = msrvtt(ANNOTATION, 1000)
    assert few.verified
    assert few.describe()["count"] == 1000
    assert few.describe()["sha256"] != few.sha256 == few.describe()["list_sha256"]


def annotation(captions: dict[int, str]) -> str:
    rows = [{"caption": text, "sen_id": number, "video_id": "video1"} for number, text in captions.items()]
    return json.dumps({"info": {}, "videos": [], "sentences": rows})


@pytest.mark.parametrize("packed", [False, True])
def test_another_annotation_works_and_is_marked(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / ("a.json.zip" if packed else "a.json")
    text = annotation({10: "ten", 9: "nine", 100: "hundred", 1: "one"})
    if packed:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("folder/a.json", text)
    else:
        path.write_text(text)
    captions = msrvtt(path)
    assert captions.texts == ("one", "nine", "ten", "hundred")
    assert captions.sha256 == prompts_hash(["one", "nine", "ten", "hundred"])
    assert not captions.verified
    assert msrvtt(path, 2).texts == ("one", "ten")
    with pytest.raises(UserError, match="has 4 captions: cannot take 5"):
        msrvtt(path, 5)


@pytest.mark.parametrize("text", ["", "[]", '{"sentences": [{}]}', '{"sentences": []}', '{"sentences": 5}', "[" * 10_000])
def test_a_file_that_is_no_annotation(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"a\.json"):
        msrvtt(path)
    path = tmp_path / "a.zip"
    path.write_text(text)
    with pytest.raises(UserError, match="zip"):
        msrvtt(path)


@real_lists
def test_the_published_prompts_of_ucf101() -> None:
    prompts = ucf101(LISTS / "ucf101_prompts_pyoco.txt", 505)
    assert (prompts.name, prompts.verified) == ("UCF-101 prompts of PYoCo", True)
    assert Counter(prompts.labels) == dict.fromkeys(range(101), 5)
    assert prompts.texts[:2] == ("applying eye makeup", "applying lipstick")
    assert ucf101(LISTS / "ucf101_prompts_pyoco.txt", 606).texts[:505] == prompts.texts


@real_lists
def test_class_names_do_as_prompts() -> None:
    prompts = ucf101(LISTS / "ucf101_classInd.txt", 101)
    assert prompts.texts[:5] == ("apply eye makeup", "apply lipstick", "archery", "baby crawling", "balance beam")
    assert not prompts.verified


@real_lists
def test_the_distribution_of_a_split_is_followed() -> None:
    classes, split = LISTS / "ucf101_classInd.txt", LISTS / "ucf101_testlist01.txt"
    names = read_split(split)
    assert len(names) == 3783
    prompts = ucf101(classes, len(names), classes=classes, split=split)
    sizes = Counter(name.split("/")[0] for name in names)
    assert [Counter(prompts.labels)[index] for index in range(101)] == [sizes[name] for name in read_classes(classes)]
    with pytest.raises(UserError, match="--classes"):
        ucf101(classes, 10, split=split)
    with pytest.raises(UserError, match="no split of UCF-101"):
        ucf101(classes, 10, classes=classes, split=classes)
    with pytest.raises(UserError, match="no class index"):
        ucf101(classes, 10, classes=LISTS / "ucf101_prompts_pyoco.txt", split=split)


def test_every_beginning_is_in_proportion() -> None:
    weights = [5, 1, 3, 0]
    order = interleave(weights, 900)
    for length in (9, 90, 900):
        counts = Counter(order[:length])
        assert [counts[index] for index in range(4)] == [length * weight // 9 for weight in weights]
    assert all(abs(Counter(order[:n])[0] - 5 * n / 9) <= 1 for n in range(1, 900))


def test_a_list_of_another_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("one\ntwo")
    with pytest.raises(UserError, match="2 lines; UCF-101 has 101 classes"):
        ucf101(path)


@pytest.mark.parametrize(
    ("name", "words"),
    [("ApplyEyeMakeup", "apply eye makeup"), ("TaiChi", "tai chi"), ("YoYo", "yo yo"), ("Archery", "archery")],
)
def test_class_names_as_words(name: str, words: str) -> None:
    assert spoken(name) == words
