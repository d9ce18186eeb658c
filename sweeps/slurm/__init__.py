"""SLURM: submission (through submitit), what runs on a node, and what the queue says.

``settings`` - what a user may ask for. ``script`` - sbatch's scripts. ``submission`` - arrays of
packs of runs. ``job`` - a pack on its node. ``queue`` - squeue, sacct, scancel, read in one call
for many jobs. ``settle`` - why runs ended that could not say so. ``collect`` - the job after all
others.
"""
