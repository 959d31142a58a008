"""The parts that answer by a rule are those of the optimisers' tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "optimize"))
