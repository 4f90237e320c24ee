"""A procedural image set for tests and the demo."""
