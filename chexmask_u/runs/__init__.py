"""What a run is on storage, and how one attempt at it lives: folder, repair, lock, identity, report, Ray cluster.

It may import `steps` and the rooms before it; only `cluster` imports Ray, and only the report's own files matplotlib.
"""
