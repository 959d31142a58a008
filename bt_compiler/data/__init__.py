"""Examples, where they come from and how they are split. Knows nothing of programs."""

from bt_compiler.data.example import Example, Splits, make_example
from bt_compiler.data.splits import Loaded, check_data, load_examples, load_splits

__all__ = ["Example", "Loaded", "Splits", "check_data", "load_examples", "load_splits", "make_example"]
