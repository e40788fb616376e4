"""Instruments that slow a program down; imported only on request."""
