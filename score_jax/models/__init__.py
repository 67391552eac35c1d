"""Score networks in Flax."""
