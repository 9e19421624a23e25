"""Settings of all tests: hypothesis draws the same examples each time, at any machine speed."""

from hypothesis import settings

settings.register_profile("graftwork", derandomize=True, deadline=None)
settings.load_profile("graftwork")
