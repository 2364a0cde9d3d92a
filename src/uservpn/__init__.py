"""uservpn: a user-space mesh VPN to the internet that shows up as a SOCKS5 proxy."""

__version__ = "0.1.0"
