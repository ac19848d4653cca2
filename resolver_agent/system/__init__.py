"""Helpers for the operating system and the event loop. Nothing here knows PostgreSQL."""
