"""Real parts for all tests, small enough that a whole video takes a second. See tiny.py, which tests import by its name."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from videogen.pipeline import VideoGenPipeline

sys.path.append(str(Path(__file__).parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tiny networks wait for threads longer than they compute


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole pipeline folder: 32x32 pixels. Not to be written to."""
    import tiny

    return tiny.write_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_pipe(tiny_folder: Path) -> VideoGenPipeline:
    """The pipeline of `tiny_folder`. Not to be changed."""
    from videogen.pipeline import VideoGenPipeline

    return VideoGenPipeline.from_pretrained(tiny_folder)
