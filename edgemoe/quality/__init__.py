"""How good a model's answers are: perplexity, distance to another model, small tasks; and what its experts matter.

Everything here runs the product's own engine and uses numpy.
"""
