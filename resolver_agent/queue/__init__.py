"""The queue: during planned work on a server, statements for it wait instead of failing."""
