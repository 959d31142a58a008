"""Options of the whole test suite."""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("search", max_examples=2_000, deadline=None, print_blob=True)
settings.load_profile("same")
"""A failure belongs to what was changed, not to the day: property tests take the same examples each time. New ones
are looked for with `pytest --hypothesis-profile=search`.
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-expected", action="store_true", help="write what is found now into the bad specs' trailing comments"
    )
