"""Results on disk, and the refusal to compare what was not measured alike."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from videogen.config import UserError
from videogen.evaluation.features import FeatureSource
from videogen.evaluation.result import MUST_AGREE, Result, compare, differences, digest, fingerprint, read_result

SOURCE = FeatureSource("i3d-kinetics400-logits", "i3d.safetensors", "ab" * 32, verified=False)
PROTOCOL: dict[str, Any] = {
    "prompts": ["a red ball", "a blue box"],
    "count": 2,
    "seeds": [0, 1],
    "size": (256, 256),
    "num_frames": 16,
    "stride": 1,
    "fps": 8.0,
    "resize": "bilinear",
    "features": SOURCE,
    "splits": 10,
}


def result(value: float = 554.0, /, **changes: Any) -> Result:
    """With another protocol where `changes` names a part of it, else with another field."""
    protocol = {key: changes.pop(key, old) for key, old in PROTOCOL.items()}
    fields = {"spread": 23.0, "interval": (510.0, 600.0), "samples": 2, "skipped": 0, "details": {"noise_floor": 80.5}}
    return Result("frechet_video_distance", value, **{**fields, "fingerprint": fingerprint(**protocol), **changes})


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    for each in (result(), result(3.5, spread=None, interval=None, in_domain=True)):
        each.write(tmp_path / "fvd.json")
        assert read_result(tmp_path / "fvd.json") == each
    assert os.listdir(tmp_path) == ["fvd.json"]


@pytest.mark.parametrize("changes", [{"spread": float("nan")}, {"details": {"noise_floor": float("inf")}}])
def test_numbers_that_are_not_finite_are_not_written(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a finite number"):
        result(**changes).write(tmp_path / "fvd.json")
    assert not os.listdir(tmp_path)


def test_the_fingerprint_holds_what_a_number_depends_on() -> None:
    found = result().fingerprint
    assert set(found) == set(MUST_AGREE)
    assert found["prompts_sha256"] == digest(["a red ball", "a blue box"])
    assert found["features"] == {"name": SOURCE.name, "sha256": SOURCE.sha256, "verified": False}
    assert found["protocol"] == {"splits": 10}
    assert {"torch", "transformers", "videogen"} <= set(found["versions"])
    assert found == json.loads(json.dumps(found))


def test_equal_protocols_are_compared(tmp_path: Path) -> None:
    for value in (554.0, 580.0):
        result(value).write(tmp_path / f"{value:.0f}.json")
    table = compare(read_result(tmp_path / "554.json"), read_result(tmp_path / "580.json"), ("ours", "theirs"))
    lines = table.splitlines()
    assert lines[0].split() == ["ours", "theirs"]
    assert lines[2].split() == ["value", "554", "580"]
    assert "unverified" in table
    assert "overlap" in table


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"prompts": ["a red ball", "a blue star"]}, "prompts_sha256"),
        ({"count": 3}, "count"),
        ({"seeds": [5, 6]}, "seeds.first"),
        ({"seeds": None}, "seeds"),
        ({"size": (128, 256)}, "height: 256 and 128"),
        ({"size": (256, 128)}, "width: 256 and 128"),
        ({"num_frames": 17}, "num_frames: 16 and 17"),
        ({"stride": 2}, "stride: 1 and 2"),
        ({"fps": 4.0}, "fps: 8.0 and 4.0"),
        ({"resize": "bicubic"}, "resize: bilinear and bicubic"),
        ({"features": dataclasses.replace(SOURCE, sha256="cd" * 32)}, "features.sha256"),
        ({"features": None}, "features"),
        ({"splits": 1}, "protocol.splits: 10 and 1"),
        ({"samples": 1}, "samples: 2 and 1"),
        ({"in_domain": True}, "in_domain: false and true"),
        ({"fingerprint": {}}, "resize"),
    ],
)
def test_different_protocols_are_refused_and_the_difference_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match="cannot be compared") as refusal:
        compare(result(), result(**changes))
    assert named in str(refusal.value)
    with pytest.raises(UserError, match="cannot be compared"):
        compare(result(**changes), result())


def test_different_metrics_and_library_versions_are_refused() -> None:
    with pytest.raises(UserError, match="metric: frechet_video_dista"):
        compare(result(), dataclasses.replace(result(), metric="inception_score"))
    other = dict(result().fingerprint) | {"versions": result().fingerprint["versions"] | {"torch": "1.0"}}
    with pytest.raises(UserError, match=r"versions\.torch: .* and 1\.0"):
        compare(result(), result(fingerprint=other))


def test_where_the_weights_lay_and_what_else_is_told_does_not_matter() -> None:
    moved = dataclasses.replace(SOURCE, path="/elsewhere/i3d.safetensors")
    assert differences(result(), result(1.0, features=moved, details={}, skipped=3)) == {}


def test_what_may_differ_is_shown() -> None:
    table = compare(result(), result(600.0, seeds=None, stride=2), allow=("seeds", "stride"))
    assert "differs: seeds" in table
    assert "differs: stride" in table
    with pytest.raises(UserError, match="stride"):
        compare(result(), result(seeds=None, stride=2), allow=("seeds",))


def test_in_domain_results_are_told_to_be_so() -> None:
    assert "not comparable with published" in compare(result(in_domain=True), result(in_domain=True))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "\x00",
        '{"format": 1}',
        '{"format": 2, "value": 3}',
        "[" * 100_000,
    ],
)
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match="is not a result"):
        read_result(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("value", "3"),
        ("value", None),
        ("interval", [1.0]),
        ("interval", 3),
        ("samples", -1),
        ("samples", True),
        ("fingerprint", []),
    ],
)
def test_fields_of_another_type_are_refused(field: str, value: Any, tmp_path: Path) -> None:
    result().write(tmp_path / "a.json")
    table = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps(table | {field: value}))
    with pytest.raises(UserError, match="wrong type"):
        read_result(tmp_path / "a.json")


def test_a_missing_file_and_a_missing_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        read_result(tmp_path / "none.json")
    with pytest.raises(UserError, match="there is no folder"):
        result().write(tmp_path / "none" / "fvd.json")
    with pytest.raises(UserError, match="not a regular file"):
        read_result(tmp_path)


def test_a_reader_who_leaves_early_gets_no_traceback(tmp_path: Path) -> None:
    result().write(tmp_path / "a.json")
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "videogen", "evaluate", "compare", *[str(tmp_path / "a.json")] * 2]
    with os.fdopen(writer, "wb") as nobody_reads:
        done = subprocess.run(command, stdout=nobody_reads, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (141, b"")
