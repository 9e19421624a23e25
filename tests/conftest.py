"""Settings of all tests: hypothesis draws the same examples each time, at any machine speed."""

import pytest
from hypothesis import settings

settings.register_profile("graftwork", derandomize=True, deadline=None)
settings.load_profile("graftwork")


@pytest.fixture
def untyped(request: pytest.FixtureRequest) -> None:
    """Skip a test of values outside their annotation where annotations are checked at run time."""
    if request.config.getoption("--jaxtyping-packages"):
        pytest.skip("the annotation already refuses this value")
