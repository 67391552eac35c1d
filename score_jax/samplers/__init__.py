"""Samplers: score functions in, the end of one chain per key out; each one XLA program."""
