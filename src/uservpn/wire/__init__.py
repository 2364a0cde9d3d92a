"""What stands in a message: header, sealing, frames (docs/wire.md)."""
