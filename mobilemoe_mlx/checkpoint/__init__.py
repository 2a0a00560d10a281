"""Checkpoint folders: find, check, read, write and rewrite them, bit for bit."""
