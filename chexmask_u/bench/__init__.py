"""Measurements of what a run pays for, each against the least that it could cost."""
