"""Statements about the user study's page and key (section 4.4). What becomes of the answers: test_study_report.py."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from videogen.config import UserError
from videogen.evaluation.study import QUESTIONS, Study, build_study
from videogen.video import Video, read_provenance, read_video, write_video

PROMPTS = ("a red ball", '</script><script>alert("1")</script> <!-- $style & \u2028', "\u202eein Stern, \u00e9toile, 星")


def clip(level: int, frames: int = 3, size: int = 32, fps: float = 8.0, prompt: str | None = None) -> Video:
    """Grey of one level, with a white square that moves."""
    pixels = np.full((frames, size, size, 3), level, np.uint8)
    for index in range(frames):
        pixels[index, 4:10, index : index + 6] = 255
    return Video(pixels, fps, {"prompt": prompt, "model": "secret-model"} if prompt else {})


def write_system(folder: Path, level: int, prompts: tuple[str, ...] = PROMPTS) -> Path:
    """Videos 0.mp4, 1.mp4 ... of levels level, level + 10 ..."""
    folder.mkdir(parents=True)
    for index, prompt in enumerate(prompts):
        write_video(clip(level + 10 * index, prompt=prompt), folder / f"{index}.mp4")
    return folder


@pytest.fixture(scope="module")
def systems(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folders. Not to be written to."""
    root = tmp_path_factory.mktemp("systems")
    return [write_system(root / "oursystem", 20), write_system(root / "theirsystem", 120)]


@pytest.fixture(scope="module")
def study(systems: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Of both. Not to be written to."""
    return build_study(systems, tmp_path_factory.mktemp("study") / "study", seed=3)


def key_of(study: Study) -> dict[str, Any]:
    return json.loads(study.key.read_text())


def data_of(study: Study) -> dict[str, Any]:
    """What the page knows."""
    found = re.search(r'<script type="application/json" id="study">(.*?)</script>', study.page.read_text("utf-8"), re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_page_folder_holds_the_page_and_the_videos_and_the_key_lies_beside_it(study: Study) -> None:
    public = study.page.parent
    files = sorted(path.relative_to(public.parent).as_posix() for path in public.parent.rglob("*") if path.is_file())
    assert files == sorted(["key.json", "public/index.html", *(f"public/videos/{name}" for name in key_of(study)["videos"])])
    assert (study.trials, study.videos, study.remarks) == (3, 6, ())


def test_nothing_in_the_page_folder_tells_who_made_what(study: Study) -> None:
    for path in study.page.parent.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(word in content for word in (b"oursystem", b"theirsystem", b"secret-model", b'0.mp4"')), path
        if path.suffix == ".mp4":
            assert re.fullmatch(r"[0-9a-f]{16}\.mp4", path.name)
            assert read_provenance(path) == {}


def test_the_key_names_the_maker_of_each_video(study: Study) -> None:
    key = key_of(study)
    for trial in key["trials"].values():
        assert {key["videos"][name]["system"] for name in trial["videos"]} == {"oursystem", "theirsystem"}
        for name in trial["videos"]:
            path, made = study.page.parent / "videos" / name, key["videos"][name]
            level = {"oursystem": 20, "theirsystem": 120}[made["system"]] + 10 * int(trial["item"])
            frames = read_video(path).frames
            assert frames.shape == (3, 32, 32, 3)
            assert abs(int(np.median(frames)) - level) <= 2
            assert made["file"] == f"{trial['item']}.mp4"
            assert made["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_prompts_are_data_in_the_page(study: Study) -> None:
    page, key = study.page.read_text("utf-8"), key_of(study)
    assert {trial["prompt"] for trial in data_of(study)["trials"]} == {" ".join(prompt.split()) for prompt in PROMPTS}
    assert {name: trial["prompt"] for name, trial in key["trials"].items()} == {
        trial["id"]: trial["prompt"] for trial in data_of(study)["trials"]
    }
    assert "alert(" not in page.replace('alert(\\"1\\")', "")
    assert page.count("</script>") == 2


def test_the_policy_allows_the_page_itself_and_nothing_else(study: Study) -> None:
    page = study.page.read_text("utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    for element, rule in (("style", "style-src"), ("script", "script-src")):
        inner = re.search(rf"<{element}>(.*?)</{element}>", page, re.DOTALL)
        assert inner
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(inner[1].encode()).digest()).decode()}'"
    assert not re.search(r"https?:|//[a-z]+\.|\bfetch\(|XMLHttpRequest|innerHTML", page.replace("// ", ""))


def test_a_seed_makes_the_same_study_again_and_another_one_another(systems: list[Path], tmp_path: Path) -> None:
    same, again, other = (key_of(build_study(systems, tmp_path / str(i), seed=seed)) for i, seed in enumerate((3, 3, 4)))
    assert same == again
    assert same["study"] != other["study"]
    assert not same["videos"].keys() & other["videos"].keys()


def test_without_a_seed_nobody_can_guess_the_names(systems: list[Path], tmp_path: Path) -> None:
    first, second = (key_of(build_study(systems, tmp_path / name)) for name in "ab")
    assert not first["videos"].keys() & second["videos"].keys()


def test_neither_order_nor_sides_follow_from_the_system(tmp_path: Path) -> None:
    video = clip(9, frames=2, size=16)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(24):
            write_video(video, tmp_path / name / f"{index:02d}.mp4")
    (tmp_path / "prompts.txt").write_text("\n".join(f"prompt {index}" for index in range(24)))
    made = build_study([tmp_path / "a", tmp_path / "b"], tmp_path / "s", prompts=tmp_path / "prompts.txt", seed=1)
    key = key_of(made)
    assert 6 <= sum(key["videos"][trial["videos"][0]]["system"] == "a" for trial in key["trials"].values()) <= 18
    items = [trial["item"] for trial in key["trials"].values()]
    assert items != sorted(items)
    assert all(trial["prompt"] == f"prompt {int(trial['item'])}" for trial in key["trials"].values())
    drawn = key_of(build_study([tmp_path / "a", tmp_path / "b"], tmp_path / "t", prompts=tmp_path / "prompts.txt", count=5))
    assert len(drawn["trials"]) == 5
    assert len(drawn["videos"]) == 10


def test_three_systems_are_compared_in_every_pair(systems: list[Path], tmp_path: Path) -> None:
    third = tmp_path / "deep" / "oursystem"  # of the same name as the first
    third.mkdir(parents=True)
    for index in range(3):
        write_video(clip(200, frames=6, size=48), third / f"{index}.webm")
    study = build_study([*systems, third], tmp_path / "study", questions={"calm": "Which one is calmer?"}, ties=True)
    key = key_of(study)
    names = [f"{systems[0].parent.name}/oursystem", "theirsystem", "deep/oursystem"]
    assert key["systems"] == names
    pairs = [frozenset(key["videos"][name]["system"] for name in trial["videos"]) for trial in key["trials"].values()]
    assert sorted(map(sorted, set(pairs))) == sorted(sorted([names[a], names[b]]) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert len(pairs) == 9
    assert data_of(study)["questions"] == [{"id": "calm", "text": "Which one is calmer?"}]
    assert data_of(study)["ties"] is True
    assert len(study.remarks) == 2
    assert "size" in study.remarks[0]
    assert "duration" in study.remarks[1]


def test_a_captions_table_gives_the_prompts(systems: list[Path], tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("file,caption\n0.mp4,zero\n1.mp4,one\n2.mp4,two\n")
    key = key_of(build_study(systems, tmp_path / "study", prompts=tmp_path / "captions.csv"))
    assert {trial["item"]: trial["prompt"] for trial in key["trials"].values()} == {"0": "zero", "1": "one", "2": "two"}


def missing_video(folders: list[Path]) -> None:
    (folders[1] / "1.mp4").unlink()


def extra_video(folders: list[Path]) -> None:
    shutil.copy(folders[1] / "1.mp4", folders[1] / "extra.mp4")


def two_of_a_name(folders: list[Path]) -> None:
    shutil.copy(folders[0] / "1.mp4", folders[0] / "1.mov")


def cut_video(folders: list[Path]) -> None:
    path = folders[1] / "1.mp4"
    path.write_bytes(path.read_bytes()[:400])
    (folders[1] / "1.txt").write_text(PROMPTS[1])


def other_prompt(folders: list[Path]) -> None:
    write_video(clip(1, prompt="a blue ball"), folders[1] / "0.mp4", overwrite=True)


def no_prompt(folders: list[Path]) -> None:
    for folder in folders:
        (folder / "0.json").unlink()
        (folder / "0.mp4").unlink()
        write_video(clip(1), folder / "0.mp4")


def one_frame(folders: list[Path]) -> None:
    write_video(clip(1, frames=1, prompt=PROMPTS[0]), folders[1] / "0.mp4", overwrite=True)


def no_videos(folders: list[Path]) -> None:
    for path in folders[0].iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (missing_video, "theirsystem has no video named 1, as .*oursystem has"),
        (extra_video, "oursystem has no video named extra, as .*theirsystem has"),
        (two_of_a_name, "has two videos named 1: 1.mov and 1.mp4"),
        (cut_video, "1.mp4 is not a video that can be read"),
        (other_prompt, "0 shows 'a red ball' in oursystem but 'a blue ball' in theirsystem"),
        (no_prompt, "nothing says what .*0.mp4 should show"),
        (one_frame, "0.mp4 has too few frames: 1"),
        (no_videos, "no video in .*oursystem"),
    ],
)
def test_bad_folders_are_named_and_leave_nothing(systems: list[Path], tmp_path: Path, damage: Any, message: str) -> None:
    folders = [shutil.copytree(folder, tmp_path / folder.name) for folder in systems]
    damage(folders)
    with pytest.raises(UserError, match=message) as caught:
        build_study(folders, tmp_path / "study")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["oursystem", "theirsystem"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folders": [0]}, "two or more folders"),
        ({"folders": [0, 0]}, "given twice"),
        ({"folders": [0, "missing"]}, "there is no folder missing"),
        ({"output": "."}, "exists: a study is never replaced"),
        ({"output": "no/such/study"}, "there is no folder no/such"),
        ({"questions": {}}, "needs a question"),
        ({"questions": {"a b": "Which?"}}, "a short name"),
        ({"questions": {"a": " "}}, "a short name"),
        ({"seed": -1}, "seeds must lie in"),
        ({"count": 4}, "share 3 videos; 4"),
        ({"count": 0}, "share 3 videos; 0"),
        ({"prompts": Path("missing.csv")}, "cannot read missing.csv"),
    ],
)
def test_bad_requests_are_told_in_one_line(
    systems: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    places = [systems[one] if isinstance(one, int) else Path(one) for one in change.pop("folders", [0, 1])]
    with pytest.raises(UserError, match=message) as caught:
        build_study(places, Path(change.pop("output", "study")), **change)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_papers_two_questions_are_asked(study: Study) -> None:
    assert data_of(study)["questions"] == [{"id": name, "text": text} for name, text in QUESTIONS.items()]
    assert list(QUESTIONS) == ["quality", "match"]
    assert data_of(study)["ties"] is False
