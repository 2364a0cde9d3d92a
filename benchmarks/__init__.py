"""Speed and memory of uservpn, side by side with shadowsocks-libev on loopback."""
