"""PadChest: ``*.png`` of 16 bits, in any folders; published landmarks."""

from __future__ import annotations

from chexmask_u.training.datasets.base import Form

FORM = Form("padchest", r"\.png$", source="padchest")
