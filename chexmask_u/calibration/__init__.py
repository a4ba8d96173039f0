"""What a spread of draws is worth in pixels: checked radii, and how usual an image is; numpy alone.

It imports the words that all rooms share, and images; it knows no network, no run and no release.
"""
