"""Which model a person means: names, places on this machine, the hub."""
