"""Shenzhen: ``CXR_png/CHNCXR_0001_0.png``; published landmarks."""

from __future__ import annotations

from chexmask_u.training.datasets.base import Form

FORM = Form("shenzhen", r"(^|/)CHNCXR_\d{4}_[01]\.png$")
