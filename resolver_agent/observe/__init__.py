"""Observes the servers by SQL."""
