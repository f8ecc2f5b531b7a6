"""How a memory budget is spent, and how a running process stays inside it."""
