"""Exported forms of a checkpoint, one folder for each target."""
