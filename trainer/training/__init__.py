"""Runs, epochs and steps."""
