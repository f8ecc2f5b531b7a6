"""Open a model, plan its memory, generate. Plans and runs; measuring the machine is devices' work."""
