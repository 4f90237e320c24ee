"""A beton -> a trained AlexNet."""

__version__ = "0.1.0"
