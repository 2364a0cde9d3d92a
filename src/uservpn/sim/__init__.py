"""The mesh in simulated time: shipped nodes, a made-up network, one seed."""
