"""Metrics, environment and the report of a run."""
