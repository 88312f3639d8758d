"""Settings of all tests."""

from __future__ import annotations

try:
    from hypothesis import settings
except ImportError:  # an environment of clients runs no property test
    pass
else:
    # A machine that is shared by other work may be slow at any example: no test is timed.
    settings.register_profile("cachemw", parent=settings(), deadline=None)
    settings.load_profile("cachemw")
