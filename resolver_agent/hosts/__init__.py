"""The hosts file: the text of the block, and how the file is replaced."""
