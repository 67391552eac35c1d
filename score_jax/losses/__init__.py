"""Objectives: score functions in, one loss per example out."""
