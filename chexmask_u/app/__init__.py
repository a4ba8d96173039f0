"""The page of `chexmask-u app`: numbers are those of `use.segment`, and the page shows them.

This room imports `use`, `sources` and the rooms before them; gradio is imported by `page` alone.
"""
