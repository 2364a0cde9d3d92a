"""Small values and containers that know nothing of networks."""
