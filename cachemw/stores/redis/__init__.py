"""The store in Redis, Valkey or a compatible server."""
