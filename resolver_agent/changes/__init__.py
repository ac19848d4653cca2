"""Every change of a name, once it is in the hosts file: its history, and the command that is run for it."""
