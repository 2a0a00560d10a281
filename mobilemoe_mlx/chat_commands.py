"""What can be typed in a chat besides messages."""

HELP = "/reset forgets the conversation, /exit (or end of input) leaves, Ctrl-C stops an answer."
