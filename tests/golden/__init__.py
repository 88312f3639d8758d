"""Digests of everything that users, stores and gateways see, to hold a change of structure to no change of behaviour."""
