"""The completion port, the operations outstanding on it, and the memory the kernel may write. No asyncio here."""
