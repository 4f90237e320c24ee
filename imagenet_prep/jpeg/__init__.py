"""JPEG files: their headers and their pixels."""
