"""Functions on column batches, one row per image: read, noise, predict, mask.

This room imports `images`, `model` and the rooms before them; it knows no Ray.
"""
