"""Training on annotated radiographs, and scores of weights on them: data, loss, loop, checkpoints, card.

This room may import every room up to `runs`; only `distributed` imports Ray.
"""
