"""Drawn chest radiographs whose landmarks are known: for tests, demonstrations and training without patients."""

from chexmask_u.sources.synthetic.drawing import Drawing, draw
from chexmask_u.sources.synthetic.files import write_demo

__all__ = ["Drawing", "draw", "write_demo"]
