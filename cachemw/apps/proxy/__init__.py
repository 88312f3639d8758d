"""`cachemw proxy`: an HTTP proxy that places breakpoints."""
