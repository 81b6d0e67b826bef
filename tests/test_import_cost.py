"""Statements about what importing and asking for help costs."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

import videogen

HEAVY = ("torch", "numpy", "PIL", "av", "diffusers", "transformers", "tqdm")


def fresh(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=560)


@pytest.mark.parametrize(
    "code", ["import videogen", "import videogen.cli", "import videogen; dir(videogen); videogen.__version__"]
)
def test_importing_loads_nothing_heavy(code: str) -> None:
    result = fresh(f"{code}\nimport sys\nprint([name for name in {HEAVY} if name in sys.modules])")
    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.parametrize("command", [[], ["generate"], ["train"], ["assemble"], ["prepare"], ["prepare", "diorama"]])
def test_help_loads_nothing_heavy(command: list[str]) -> None:
    result = fresh(
        "import sys\nfrom videogen.cli import main\n"
        f"try: main({[*command, '--help']})\n"
        f"except SystemExit: print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert result.stdout.splitlines()[-1] == "[]", result.stderr
    assert "usage: videogen" in result.stdout


def test_import_and_help_are_quick() -> None:
    def best(code: str) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            fresh(code)
            times.append(time.perf_counter() - start)
        return min(times)

    python = best("pass")
    assert best("import videogen") - python < 0.1
    assert best("from videogen.cli import main; main(['--help'])") - python < 0.3


def test_public_names_are_found_when_asked_for() -> None:
    for name in videogen.__all__:
        assert getattr(videogen, name) is not None
        assert name in dir(videogen)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = videogen.nothing
