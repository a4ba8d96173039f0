"""From the bytes of one image to the 1024 frame: fetched, decoded in a process of its own, prepared as its source was.

This room imports `sources` and the words that all rooms share; it knows no rows and no Ray.
"""
