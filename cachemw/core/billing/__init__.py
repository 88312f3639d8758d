"""Usage, prices, receipts and the reasons of cache misses."""
