"""Views of an image: which windows, what is random about them, and the CPU kernels for both."""
