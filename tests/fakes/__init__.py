"""Stand-ins for what lies below the package: the Windows kernel, and the memory it writes to."""
