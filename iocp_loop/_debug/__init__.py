"""Instruments that cost something: imported only when asked for."""
