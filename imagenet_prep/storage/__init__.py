"""Local paths and URLs, and byte ranges in them."""
