"""Streams between a client and an exit, sequenced and resent until confirmed."""
