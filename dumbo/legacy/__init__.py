"""The older plugin format, read: a file in it becomes the command line that says the same."""
