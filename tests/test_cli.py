"""Statements about the command line: bad input is one line, exit code 2, no traceback, nothing half-written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from videogen import cli

PROMPT = "a red ball bounces over a meadow"

BAD_GENERATE = [
    ([], "arguments are required: -o/--output"),
    (["-o", "a.mp4"], "no prompt"),
    (["", "-o", "a.mp4"], "the prompt is empty"),
    ([PROMPT, " \t", "-o", "a.mp4"], "the prompt is empty"),
    (["--prompts-file", "missing.txt", "-o", "a.mp4"], "cannot read missing.txt"),
    (["--prompts-file", "blank.txt", "-o", "a.mp4"], "holds no prompt"),
    (["--prompts-file", ".", "-o", "a.mp4"], "not a regular file"),
    ([PROMPT, "-o", "a.avi"], "unknown ending '.avi'"),
    ([PROMPT, "-o", ""], "name is empty"),
    ([PROMPT, "-o", "no/such/folder/a.mp4"], "there is no folder"),
    ([PROMPT, "-o", "/proc/self/a.mp4"], "cannot write"),
    ([PROMPT, "-o", "kept.mp4"], "kept.mp4 exists; choose another output or give --overwrite"),
    ([PROMPT, "-o", "kept.mp4/a.mp4"], "Not a directory"),
    ([PROMPT, "-o", "."], "other files"),
    ([PROMPT, PROMPT, "-o", "many.mp4"], "many-1.mp4 exists"),
    ([PROMPT, "-o", "a.mp4", "--reference", "text.png"], "text.png is not an image"),
    ([PROMPT, "-o", "a.mp4", "--reference", "cut.png"], "cut.png is not an image"),
    ([PROMPT, "-o", "a.mp4", "--reference", "missing.png"], "cannot read missing.png"),
    ([PROMPT, "-o", "a.mp4", "--seed", "-1"], "--seed: must be a whole number from 0 to"),
    ([PROMPT, "-o", "a.mp4", "--seed", str(2**63)], "--seed: must be"),
    ([PROMPT, "-o", "a.mp4", "--seed", str(2**63 - 1), "--num-videos", "2"], "seeds must lie in"),
    ([PROMPT, "-o", "a.mp4", "--num-videos", "0"], "--num-videos: must be"),
    ([PROMPT, "-o", "a.mp4", "--num-frames", "0"], "--num-frames: must be"),
    ([PROMPT, "-o", "a.mp4", "--num-frames", "1"], "a single frame"),
    ([PROMPT, "-o", "a.mp4", "--temporal-factor", "3"], "--temporal-factor: invalid choice"),
    ([PROMPT, "-o", "a.mp4", "--fps", "0"], "--fps: must be a number from 0.1 to 960, not '0'"),
    ([PROMPT, "-o", "a.mp4", "--fps", "nan"], "--fps: must be"),
    ([PROMPT, "-o", "a.mp4", "--steps", "0"], "--steps: must be"),
    ([PROMPT, "-o", "a.mp4", "--base-steps", "1001"], "--base-steps: must be"),
    ([PROMPT, "-o", "a.mp4", "--guidance-scale", "nan"], "--guidance-scale: must be"),
    ([PROMPT, "-o", "a.mp4", "--guidance-scale", "inf"], "--guidance-scale: must be"),
    ([PROMPT, "-o", "a.mp4", "--scheduler", "pndm"], "--scheduler: invalid choice"),
    ([PROMPT, "-o", "a.mp4", "--reference-model", "sd", "--reference", "none"], "--reference-model makes the reference"),
    ([PROMPT, "-o", "a.mp4", "--device", "tpu"], "--device: invalid choice"),
    ([PROMPT, "-o", "a.mp4", "--dtype", "int8"], "--dtype: invalid choice"),
    ([PROMPT, "-o", "a.mp4", "--step", "3"], "unrecognized arguments"),
]
BAD_OTHERS = [
    ([], "required: COMMAND"),
    (["generat"], "invalid choice"),
    (["train", "no/such/recipe", "-o", "run"], "no recipe 'no/such/recipe'"),
    (["train", "unknown.toml", "-o", "run"], "unknown key 'objectiv'"),
    (["train", "orphan.toml", "-o", "run"], "no recipe 'mini/bass'"),
    (["train", "here.toml", "-o", "run"], "here.toml is like itself, by way of here.toml and there.toml"),
    (["train", "ring.toml", "-o", "run"], "ring.toml is like itself, by way of ring.toml"),
    (["train", "unknown.toml", "-o", "run", "--set", "loop.steps"], "must be KEY=VALUE"),
    (["train", "unknown.toml", "-o", "run", "--set", "loop.steps=1\nx=2"], "is no TOML value"),
    (["train", "mini/base", "-o", "run", "--set", "data.pairs=motion"], "pairs must be a list, not 'motion'"),
    (["train", "mini/base", "-o", "run", "--set", 'data.only={motion="rises"}'], "only.motion must be a list, not 'rises'"),
    (["assemble", "--from", "missing", "-o", "mini"], "there is no folder missing"),
    (["prepare"], "required: KIND"),
    (["prepare", "diorama", "--preview", "sheet.jpg"], "unknown ending '.jpg'; use .png"),
    (["prepare", "diorama", "--preview", "no/sheet.png"], "there is no folder"),
    (["prepare", "diorama", "--preview", "text.png"], "text.png exists"),
    (["prepare", "diorama", "--preview", "sheet.png", "--count", "0"], "--count: must be"),
]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("kept.mp4", "many-1.mp4", "text.png"):
        (tmp_path / name).write_text("not to be touched")
    (tmp_path / "blank.txt").write_text("\n  \n")
    (tmp_path / "unknown.toml").write_text('objective = "video_decoder"\nobjectiv = 1\n')
    (tmp_path / "orphan.toml").write_text('like = "mini/bass"\n')
    (tmp_path / "here.toml").write_text('like = "there.toml"\n')
    (tmp_path / "there.toml").write_text('like = "here.toml"\n')
    (tmp_path / "ring.toml").write_text(f'like = "../{tmp_path.name}/ring.toml"\n')
    Image.effect_noise((64, 64), 80).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    return tmp_path


@pytest.mark.parametrize(("arguments", "complaint"), [(["generate", *bad], why) for bad, why in BAD_GENERATE] + BAD_OTHERS)
def test_bad_input_is_one_line_and_leaves_nothing(
    workplace: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    before = {path.name: path.read_bytes() for path in workplace.iterdir()}
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("videogen: ")
    assert complaint in printed.err
    assert printed.err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in workplace.iterdir()} == before


def test_all_bad_input_is_found_before_torch_is_imported(workplace: Path) -> None:
    commands = [["generate", *bad] for bad, _ in BAD_GENERATE]
    commands += [bad for bad, _ in BAD_OTHERS]
    code = f"import sys\nfrom videogen.cli import main\ncodes = {{main(command) for command in {commands!r}}}\n"
    result = subprocess.run(
        [sys.executable, "-c", code + "print(codes, 'torch' in sys.modules)"], capture_output=True, text=True, check=False
    )
    assert result.stdout == "{2} False\n", result.stderr


def test_the_process_exits_with_2_and_one_line(workplace: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "videogen", "generate", "\udcff\U0001f388" * 5000, "-o", "kept.mp4"],
        capture_output=True, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr == b"videogen: kept.mp4 exists; choose another output or give --overwrite\n"


def request(*arguments: str) -> tuple[list[object], object, list[str]]:
    options = cli._parser().parse_args(["generate", *arguments])
    jobs, shared, outputs = cli._checked_request(options)
    return list(jobs), shared, outputs


def test_several_videos_are_numbered_and_each_has_its_own_seed(workplace: Path) -> None:
    (workplace / "more.txt").write_bytes("\ufeffa blue star\r\n\n# a green 🎈 box\n".encode() + b"a white ring \xff\n")
    jobs, _, outputs = request(PROMPT, "--prompts-file", "more.txt", "--num-videos", "3", "--seed", "7", "-o", "all.mp4")
    assert outputs == [f"all-{index:02d}.mp4" for index in range(12)]
    assert [(job.index, job.seed) for job in jobs] == [(index, 7 + index) for index in range(12)]
    assert [job.prompt for job in jobs[::3]] == [PROMPT, "a blue star", "# a green 🎈 box", "a white ring \ufffd"]


def test_steps_of_one_stage_override_those_of_all(workplace: Path) -> None:
    _, shared, _ = request(PROMPT, "--steps", "9", "--refiner-steps", "2", "-o", "a.gif")
    assert shared.num_inference_steps == {
        "reference": 9,
        "base": 9,
        "super_resolution_1": 9,
        "super_resolution_2": 9,
        "refiner": 2,
    }
    _, shared, _ = request(PROMPT, "--base-steps", "5", "-o", "a.gif")
    assert shared.num_inference_steps == {"base": 5}


@pytest.mark.parametrize("prompt", ["x" * 10_000, "🎈🎈🎈", "a\nb", "--", "é" * 3000])
def test_long_and_odd_prompts_are_accepted(workplace: Path, prompt: str) -> None:
    jobs, _, outputs = request("-o", "a.mp4", "--", prompt)
    assert jobs[0].prompt == prompt
    assert outputs == ["a.mp4"]


def test_numbers_go_before_the_ending() -> None:
    assert cli.numbered_outputs("out/a.b.mp4", 1) == ["out/a.b.mp4"]
    assert cli.numbered_outputs("out/a.b.mp4", 2) == ["out/a.b-0.mp4", "out/a.b-1.mp4"]
    assert cli.numbered_outputs("out.d/frames", 2) == ["out.d/frames-0", "out.d/frames-1"]
    assert cli.numbered_outputs("v1.0/", 2) == [f"v1.0-{index}/" for index in range(2)]
    assert cli.numbered_outputs("a.gif", 11)[10] == "a-10.gif"


def test_unknown_words_are_named_once_with_what_mini_knows(capsys: pytest.CaptureFixture[str]) -> None:
    cli._warn_of_unknown_words(["A red BALL, bounces slowly over a meadow!", "a zebra and a zebra 🎈 \x1b[31m"])
    line = capsys.readouterr().err
    assert line.startswith("videogen: warning: mini does not know: zebra, 🎈")
    assert "purple" in line
    assert "snowfield" in line
    assert line.count("\n") == 1
    assert "\x1b" not in line
    cli._warn_of_unknown_words(["a red ball bounces slowly over a meadow at sunset, in the rain, while the camera pans left"])
    assert capsys.readouterr().err == ""


def test_settings_are_toml_values() -> None:
    assert cli._setting("loop.steps=100") == ("loop.steps", 100)
    assert cli._setting("data.fps = [4.0, 8.0]") == ("data.fps", [4.0, 8.0])
    assert cli._setting('loop.device="cpu"') == ("loop.device", "cpu")
    assert cli._setting("options.initial=../base/network") == ("options.initial", "../base/network")


def test_interruption_exits_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_prepare_tokenizer", interrupted)
    assert cli.main(["prepare", "tokenizer", "-o", "x"]) == 130
    assert capsys.readouterr().err == "videogen: interrupted\n"


def test_prepare_writes_a_sheet_and_a_tokenizer(workplace: Path) -> None:
    assert cli.main(["prepare", "diorama", "--preview", "sheet.png", "--count", "2", "--size", "32"]) == 0
    with Image.open(workplace / "sheet.png") as sheet:
        assert sheet.width > 32
    assert cli.main(["prepare", "tokenizer", "-o", "tokenizer"]) == 0
    assert os.listdir(workplace / "tokenizer")
