"""Transports for httpx and httpx2 that place breakpoints on the way: `CacheTransport`, `AsyncCacheTransport`.

The caller's request object is never changed. If its body changes, a new request goes to the inner transport, with the
same URL, extensions and headers except for the length and the labels. A streamed body passes unread. An answer is
observed as it is on the wire, chunk by chunk, and passes unchanged.

A retry made above a transport comes as a new request and is a new call: nothing in it says which call it repeats, and
the failed call is over. `wrap` sees the retries of its SDK as one call.
"""

from cachemw.integrations._async_transport import AsyncCacheTransport
from cachemw.integrations._sync_transport import CacheTransport

__all__ = ["AsyncCacheTransport", "CacheTransport"]
