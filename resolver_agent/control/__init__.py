"""The control socket: its client, its server, and what is sent."""
