"""Statements about `videogen evaluate` and `videogen study`: help that is quick, one line for bad input, results on disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("cv2")

import tiny  # noqa: E402
from videogen.cli import main  # noqa: E402
from videogen.evaluation.result import read_result  # noqa: E402
from videogen.models.pretrained import load_tokenizer  # noqa: E402
from videogen.video import Video, write_video  # noqa: E402

KINDS = ("ucf101", "msrvtt", "videos", "reference", "interpolation", "decoder", "diorama", "compare")
COMMANDS = [["evaluate"], *(["evaluate", kind] for kind in KINDS), ["study"], ["study", "build"], ["study", "report"]]


def test_help_loads_nothing_heavy() -> None:
    code = f"""
import sys
from videogen.cli import main
for command in {COMMANDS}:
    try: main([*command, "--help"])
    except SystemExit as done: assert done.code == 0
heavy = ("torch", "numpy", "PIL", "av", "cv2", "diffusers", "transformers")
print([name for name in heavy if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=560)
    assert result.stdout.splitlines()[-1] == "[]", result.stderr
    assert result.stdout.count("usage: videogen") == len(COMMANDS)


def fails(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Its one line."""
    assert main(command) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("videogen: ")
    assert printed.count("\n") == 1
    return printed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "videos"
    place.mkdir()
    frames = np.random.default_rng(0).integers(0, 255, (17, 32, 32, 3), np.uint8)
    for index in range(3):
        write_video(Video(frames[index:], 8.0, {"prompt": f"a red ball {index}"}), place / f"{index}.mp4")
    return place


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["evaluate"], "required"),
        (["evaluate", "everything"], "invalid choice"),
        (["evaluate", "videos", "nowhere", "-o", "out"], "there is no folder nowhere"),
        (["evaluate", "videos", ".", "-o", "out"], "no video in"),
        (["evaluate", "videos", ".", "-o", "out", "--size", "4"], "from 16 to 4096"),
        (["evaluate", "videos", ".", "-o", "file"], "file is a file"),
        (["evaluate", "ucf101", "-o", "out"], "one of the arguments --model --videos is required"),
        (["evaluate", "ucf101", "-o", "out", "--model", "mini"], "give --prompts"),
        (["evaluate", "ucf101", "-o", "out", "--videos", ".", "--i3d", "x"], "FVD needs both"),
        (["evaluate", "ucf101", "-o", "out", "--model", "mini", "--prompts", "file"], "1 lines; UCF-101 has 101 classes"),
        (["evaluate", "msrvtt", "-o", "out", "--model", "mini"], "needs --annotations"),
        (["evaluate", "msrvtt", "-o", "out", "--model", "m", "--annotations", "file", "--clip", "c"], "no annotation"),
        (["evaluate", "reference", "-o", "out", "--model", "m", "--prompts", "a", "--annotations", "b"], "give either"),
        (["evaluate", "interpolation", "-o", "out", "--model", "nowhere/at-all", "--lpips", "nothing"], "nothing"),
        (["evaluate", "compare", "file", "file"], "not a result"),
        (["study", "build", ".", "-o", "out"], "videos"),
        (["study", "build", ".", ".", "-o", "out", "--question", "odd"], "must be ID=TEXT"),
        (["study", "report", "file", "--key", "file", "-o", "r.json"], "file"),
    ],
)
def test_bad_input_is_one_line(
    command: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("odd")
    assert message in fails(command, capsys)


def test_a_folder_is_measured_and_compared(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["evaluate", "videos", str(folder), "--size", "32", "--quiet"]
    assert main([*common, "--num-frames", "4", "-o", str(tmp_path / "a")]) == 0
    assert main([*common, "--num-frames", "4", "-o", str(tmp_path / "b"), "--batch", "1"]) == 0
    assert main([*common, "--num-frames", "5", "-o", str(tmp_path / "c")]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.count("| motion_flow ") == 3
    files = [str(tmp_path / place / "motion_flow.json") for place in "abc"]
    assert main(["evaluate", "compare", files[0], files[1]]) == 0
    assert "value" in capsys.readouterr().out
    assert "num_frames: 4 and 5" in fails(["evaluate", "compare", files[0], files[2]], capsys)
    assert main(["evaluate", "compare", files[0], files[2], "--allow", "num_frames"]) == 0
    assert "differs: num_frames" in capsys.readouterr().out


def test_msrvtt_on_a_pipeline(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_runs(tmp_path / "runs")
    clip = tmp_path / "runs" / "text_encoder" / "network"
    load_tokenizer(tmp_path / "runs").save_pretrained(clip)
    rows = [{"caption": f"a red ball {index}", "sen_id": 9 - index} for index in range(4)]
    (tmp_path / "captions.json").write_text(json.dumps({"sentences": rows}))
    command = [
        "evaluate", "msrvtt", "-o", str(tmp_path / "out"), "--model", str(tiny_folder), "--annotations",
        str(tmp_path / "captions.json"), "--clip", str(clip), "--count", "2", "--num-frames", "3", "--size", "32",
        "--steps", "1", "--lossless", "--quiet",
    ]  # fmt: skip
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "0.3127" in printed.out  # the paper's, beside ours
    result = read_result(tmp_path / "out" / "clip_similarity.json")
    assert result.samples == 2
    protocol = result.fingerprint["protocol"]
    assert (protocol["benchmark"], protocol["stored_as"], protocol["list_verified"]) == ("msrvtt", ["images"], False)
    assert json.loads((tmp_path / "out" / "videos" / "000000" / "provenance.json").read_text())["prompt"] == "a red ball 3"
    assert main(command) == 0  # nothing is missing
    assert read_result(tmp_path / "out" / "clip_similarity.json") == result
    other = [*command, "--seed", "1"]
    assert "made with another seed" in fails(other, capsys).replace(printed.out, "")


def test_a_study_is_built(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in folder.glob("*.mp4"):
        (other / path.name).write_bytes(path.read_bytes())
    command = ["study", "build", str(folder), str(other), "-o", str(tmp_path / "study"), "--count", "2"]
    assert main([*command, "--question", "quality=Which is nicer?"]) == 0
    assert "2 pairs of 4 videos" in capsys.readouterr().out
    assert (tmp_path / "study" / "public" / "index.html").is_file()
    assert "key.json" in fails(["study", "report", str(tmp_path), "--key", str(tmp_path / "key.json"), "-o", "r.json"], capsys)
