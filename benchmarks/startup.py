"""What saying hello costs: `import videogen` and `videogen --help` in a fresh process. Aims: 0.1 s and 0.3 s, no torch."""

from __future__ import annotations

import statistics
import subprocess
import sys
from functools import partial

from measuring import interleaved, parser, report

BARE = "pass"
IMPORT = "import videogen"
HELP = "import sys; sys.argv = ['videogen', '--help']; from videogen.cli import main; main()"
HEAVY = ("torch", "numpy", "diffusers", "transformers")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def loaded(code: str) -> str:
    """Which heavy modules the code has imported."""
    watch = f"import atexit, sys; atexit.register(lambda: print([m for m in {HEAVY} if m in sys.modules]))"
    last = run(f"{watch}\n{code}").splitlines()[-1]
    return last.strip("[]").replace("'", "") or "none"


def main() -> None:
    options = parser(__doc__, repeats=11).parse_args()
    codes = {"python alone": BARE, "import videogen": IMPORT, "videogen --help": HELP}
    seconds = interleaved({name: partial(run, code) for name, code in codes.items()}, options.repeats)
    bare = statistics.median(seconds["python alone"])
    rows = []
    for name, code in codes.items():
        whole = statistics.median(seconds[name])
        rows.append({"process": name, "seconds": whole, "beyond python": whole - bare, "heavy imports": loaded(code)})
    report(rows, options)


if __name__ == "__main__":
    main()
