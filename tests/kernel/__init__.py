"""The kernel ring: the real Win32, on Windows or under Wine."""
