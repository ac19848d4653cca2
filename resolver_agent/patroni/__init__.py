"""Asks Patroni's REST API: who holds the leader lock, who is a member, which members must not serve reads."""
