"""Formats of an export, one file each: to add one, add its module.

Its name is the format's, with dashes, and the first line of its docstring says what people get. `files(source)` names
the files of a source, below the output; `write(rows, *streams)` writes them, from an `export.rows.SourceRows`.
"""
