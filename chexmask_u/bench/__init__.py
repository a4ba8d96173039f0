"""Measurements of what a run pays for, each against the least that it could cost, and forecasts of runs from a probe.

This room imports the pipeline and the rooms before it, and Ray through `runs.cluster` alone.
"""
