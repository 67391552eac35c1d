"""What `main.py` does: the only modules that know all others, and that compile for many devices."""
