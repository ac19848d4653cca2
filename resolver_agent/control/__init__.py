"""The control socket: who asks, who answers, and what is answered."""
