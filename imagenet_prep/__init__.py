"""Raw pictures -> 256×256 crops, exact statistics and verified FFCV betons."""

__version__ = "0.1.0"
