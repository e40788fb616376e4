"""What a handle can do: sockets, pipes, handles that only threads can serve, waits and readiness. No asyncio here."""
