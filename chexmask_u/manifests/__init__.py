"""Which images a run is about: manifests, made of folders and published sources, checked and merged; CheXmask's CSVs.

A manifest is a Parquet file with one row per image (`record.MANIFEST`). This room imports sources and the words at the
top, and knows no Ray.
"""
