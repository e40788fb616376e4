"""One port, the operations that are outstanding on it, and the memory the kernel may write. No asyncio here."""
