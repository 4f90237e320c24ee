"""The AlexNet family and its layers."""
