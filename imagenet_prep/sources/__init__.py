"""Raw image collections: one module per layout, and their recognition."""
