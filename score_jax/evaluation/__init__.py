"""How good a score network is."""
