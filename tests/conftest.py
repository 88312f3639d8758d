"""Settings of all tests."""

from __future__ import annotations

try:
    from hypothesis import settings
except ImportError:  # the environments of the clients run no property test
    pass
else:
    # Other work may slow the machine at any example, so no example has a deadline.
    settings.register_profile("cachemw", parent=settings(), deadline=None)
    settings.load_profile("cachemw")
