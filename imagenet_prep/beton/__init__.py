"""The build stage: crops to FFCV beton files, and their verification."""
