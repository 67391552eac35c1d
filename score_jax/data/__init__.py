"""Where images come from, in memory or lazily decoded, and batches of them as a pure function of (seed, step)."""
