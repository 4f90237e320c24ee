"""A beton -> a trained AlexNet."""
