"""Proof of Core ML packages in numpy: reads what was saved and never runs the program in memory."""
