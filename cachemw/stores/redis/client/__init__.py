"""Commands to Redis under a deadline, whatever its topology."""
