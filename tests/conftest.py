"""Settings of all tests."""

from __future__ import annotations

from hypothesis import settings

# A machine that is shared by other work may be slow at any example: no test is timed.
settings.register_profile("cachemw", parent=settings(), deadline=None)
settings.load_profile("cachemw")
