"""Configuration, keys, and talking to a running node."""
