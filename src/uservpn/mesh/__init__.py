"""Which links a peer has, and whether it is alive."""
