"""How fast engines run a checkpoint and what memory they need: each in a process of its own."""
