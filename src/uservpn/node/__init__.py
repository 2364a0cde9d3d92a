"""One node's core: sessions, mesh and tunnels behind one machine without I/O."""
