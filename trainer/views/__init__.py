"""Views of an image: which windows, what is random about them, and the kernels for both."""
