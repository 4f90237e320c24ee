"""One raw image (``Source``), and the files that hold many: archives, arrays, tables."""
