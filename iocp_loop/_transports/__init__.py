"""Asyncio transports. They go by the contracts of level 3: an address, a key or an error number never shows."""
