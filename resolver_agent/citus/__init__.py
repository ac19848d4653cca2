"""Citus on the local server: flushing its cached connections, its 2PC recovery and clean-up, its metadata."""
