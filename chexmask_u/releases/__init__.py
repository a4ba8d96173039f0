"""What a complete run becomes for others: versions, their pages and check, what changed, publication, exports.

It may import `runs` and what stands before it; of Ray it knows nothing.
"""
