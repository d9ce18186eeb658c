"""Runs as trials of Ray Tune: settings, launcher, experiment, trials, search, early stopping."""
