"""Flow matching on the variance-preserving path, for fewstep."""
