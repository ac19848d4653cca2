"""The command ``doctor``: gathers facts about this node and reports what is wrong with it."""
