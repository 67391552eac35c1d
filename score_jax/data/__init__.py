"""Images in memory, and batches of them as a pure function of (seed, step)."""
