"""The hosts file: what the block says, and how the file is replaced."""
