"""Errors, atomic files, redaction of credentials, the terminal."""
