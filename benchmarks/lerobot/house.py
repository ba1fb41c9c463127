"""Puts the folder of the benchmarks on the path: programs here are started by their own, in several environments."""

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent.parent
# Last, so that this folder's name hides no package.
sys.path.append(str(BENCHMARKS))
