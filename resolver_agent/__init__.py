"""Keeps the stable names in a Citus cluster's metadata pointed at the right servers, through the hosts file."""

__version__ = "0.1.0"
