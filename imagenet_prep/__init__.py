"""Raw images -> 256×256 crops, exact statistics and verified FFCV beton files."""

__version__ = "0.1.0"
INTERRUPTED_MESSAGE = "interrupted; the same command continues"
"""Printed after Ctrl-C."""
