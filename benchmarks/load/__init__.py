"""Shared parts of `chaos` and `soak`: a provider that fails on request, clients, processes, and the accounts."""
