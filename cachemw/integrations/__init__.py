"""Doors: each translates between a host and the middleware, and knows no other."""
