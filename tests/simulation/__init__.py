"""Whole clusters in virtual time: servers, Patroni, clients and the agent's own code, with faults by seed."""
