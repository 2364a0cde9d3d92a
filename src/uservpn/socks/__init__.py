"""The languages of the entry port: SOCKS5, SOCKS4/4a and HTTP proxying, without I/O."""
