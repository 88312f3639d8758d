"""The simulated provider, its bound and its replay; never on the request path."""
