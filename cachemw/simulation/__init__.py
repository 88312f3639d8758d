"""The simulated provider, its lower bound of cost, and the replay of streams; never on the request path."""
