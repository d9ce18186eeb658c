"""Runs as trials of Ray Tune: settings, launcher, trials, search, early stopping.

Importing ray takes seconds; ``settings`` alone does without.
"""
