"""What the tests of this room share."""

from __future__ import annotations

import pytest


@pytest.fixture
def untyped(request: pytest.FixtureRequest) -> None:
    """Skip a test of values outside their annotation where annotations are checked at run time."""
    if request.config.getoption("--jaxtyping-packages"):
        pytest.skip("the annotation already refuses this value")
