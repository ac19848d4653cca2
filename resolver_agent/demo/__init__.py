"""The demonstration, on PostgreSQL servers that are thrown away."""
