"""A beton file -> a trained AlexNet."""

__version__ = "0.1.0"
INTERRUPTED_MESSAGE = "interrupted; trainer run continues with --resume"
"""Printed after Ctrl-C."""
TRIVIAL_TOP5 = 5
"""With at most this many classes the top-5 error is always 0, and not shown."""
