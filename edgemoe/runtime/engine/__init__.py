"""A model opened for generation, and what it counts, records and learns."""
