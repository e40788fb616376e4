"""Level 4: asyncio transports. They speak the verbs of level 3; an address, a key or an error number never shows."""
