"""The demonstration, on throw-away PostgreSQL servers."""
