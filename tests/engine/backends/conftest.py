"""The bench scripts of the engine hold parts that its tests use; tests of vLLM say where they run."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of vLLM are skipped where it is not installed, and vLLM warns of much that is its own business."""
    for item in items:
        if item.get_closest_marker("vllm") is not None:
            item.add_marker(pytest.mark.filterwarnings("ignore"))
            if find_spec("vllm") is None:
                item.add_marker(pytest.mark.skip(reason="vLLM is not in this environment: `make test-vllm` has one"))
