"""Proof of exports in numpy: reads what was saved and never runs the program in memory."""
