"""The contract between the two programs: clips and their lists, stored samples, published datasets.

This is the ground floor: standard library and numpy only, imported by every other room.
"""
