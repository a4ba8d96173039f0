"""What researchers call on released records and on their own images.

It may import `steps` and what stands before it.
"""
