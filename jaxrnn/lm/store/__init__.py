"""The files of a run: atomic writes, checkpoints and the folder of the run."""
