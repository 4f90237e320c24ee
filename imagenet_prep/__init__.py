"""Raw pictures -> 256×256 crops, exact statistics and verified FFCV betons."""

__version__ = "0.1.0"
FAREWELL = "interrupted; the same command continues"
"""What is said after Ctrl-C."""
