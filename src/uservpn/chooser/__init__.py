"""Which exit a connection takes."""
