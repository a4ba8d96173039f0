"""What researchers call: landmarks to trust, pictures, pairs of records and images; and what a bug report asks for.

This room imports `steps` and the rooms before it.
"""
