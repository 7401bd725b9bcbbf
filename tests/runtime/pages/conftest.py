"""The page of the demo scan, made once for all tests of pages."""

from __future__ import annotations

import pytest
from demo_page import DemoPage, make_demo_page


@pytest.fixture(scope="session")
def demo() -> DemoPage:
    """The real demo scan, segmented by the shipped model, and its page."""
    return make_demo_page()
