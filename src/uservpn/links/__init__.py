"""Links carry sealed messages between two nodes; each kind is a plug-in of `uservpn.links`."""
