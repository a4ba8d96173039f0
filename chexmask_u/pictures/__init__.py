"""How a landmark's pixels are shown, in every picture alike: one scale of colours, one outline for each organ.

It imports the words that all rooms share, and images; matplotlib is loaded by what draws alone.
"""
