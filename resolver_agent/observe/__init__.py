"""Observes the servers by SQL, and collects what Patroni says."""
