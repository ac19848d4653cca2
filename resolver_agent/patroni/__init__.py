"""Asks Patroni's REST API, and says what its answers come to."""
