"""The command: parses flags, builds what a config names, and calls the library."""
