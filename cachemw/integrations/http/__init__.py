"""Chat requests over HTTP without the I/O."""
