"""Looks after Citus on the local server: its cached connections, its 2PC recovery, its metadata."""
