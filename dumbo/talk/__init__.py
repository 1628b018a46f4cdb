"""`dumbo chat` as a conversation: in a terminal, or with a line of a pipe for each turn."""
