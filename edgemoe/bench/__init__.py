"""Measure EdgeMoE, and stock llama.cpp beside it, under one kernel memory limit.

    runner    the parent: repetitions, cold caches, limits, interleaving
    child     one repetition in a fresh process; imports little, since the limit covers it
    engines   the two engines behind the four verbs that a repetition needs
    limit     kernel memory cgroups and the page cache
    report    medians, ratios, physical bounds: pure

May import runtime and devices; nothing but the command line imports it.
"""
