"""The choice of breakpoints by their expected cost."""
