"""The network: its variants, their weights in a file, and the prediction of a batch.

It knows torch, the anatomy and the errors, and nothing of records, storage or Ray.
"""
