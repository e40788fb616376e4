"""What is asyncio's below the transports: its private names, and futures for operations."""
