"""Evaluation of score networks."""
