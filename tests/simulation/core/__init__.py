"""Small worlds around the pure core of the program alone: thousands of failovers a second, no event loop, no files."""
