"""How many of the package's own frames a call crosses, as `benchmarks/frames.py` counts them."""

import subprocess
import sys
from pathlib import Path

import iresflow

ROOT = Path(iresflow.__file__).parents[1]


def test_calls_reach_their_products_in_twelve_frames():
    script = ROOT / "benchmarks" / "frames.py"
    done = subprocess.run(
        [sys.executable, script, "--most", "12"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("frames,") == 3
