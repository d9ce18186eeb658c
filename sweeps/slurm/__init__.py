"""SLURM: submission (through submitit), what runs on a node, and the state of the queue."""
