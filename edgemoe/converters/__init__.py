"""Checkpoints and GGUF files to GGUF, with a bitwidth for each expert. Nothing here is needed to run a model."""
