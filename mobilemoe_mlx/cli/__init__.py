"""The `mobilemoe` command line: a file for each command, no logic in any of them."""
