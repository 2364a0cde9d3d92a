"""The rim: asyncio, sockets and clocks around the core."""
