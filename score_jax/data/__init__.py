"""Data sets in memory or lazily decoded, the order of batches, and random pixel transforms."""
