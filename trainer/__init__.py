"""A beton -> a trained AlexNet."""

__version__ = "0.1.0"
FAREWELL = "interrupted; a run continues with --resume, other commands begin again"
"""What is said after Ctrl-C."""
TRIVIAL_TOP5 = 5
"""With as many classes or fewer any answer is among the five likeliest: no top-5 error is shown."""
