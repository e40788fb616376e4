"""Asyncio transports. They use only the contracts of level 3, and never see an address, a key or an error number."""
