"""The command line as data: its parser, and the man pages and completions that are made from it."""
