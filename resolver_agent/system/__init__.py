"""What the operating system and the event loop are used for, without a word of PostgreSQL."""
