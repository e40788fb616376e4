"""The event loop and its parts."""
