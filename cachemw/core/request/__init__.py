"""A request body and its parts: blocks, hashes, sizes, markers, equality."""
