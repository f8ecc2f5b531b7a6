"""Describe and measure this machine: memory, cores, storage, compute speed. Measures; never plans."""
