"""A beton -> a trained AlexNet."""

__version__ = "0.1.0"
FAREWELL = "interrupted; a run continues with --resume, other commands begin again"
"""What is said after Ctrl-C."""
