"""The configuration file: its keys and values, how it is read, and the result."""
