"""Lets the tests here import toy.py, which their subprocesses run as a script."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
