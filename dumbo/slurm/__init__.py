"""Jobs of a sweep in SLURM: submitted by submitit, watched by what is on disk and in the queue."""
