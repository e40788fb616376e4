"""The parts below the transports that use asyncio: its private names, and futures for operations."""
