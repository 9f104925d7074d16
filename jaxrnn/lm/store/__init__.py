"""The files of a run: checkpoints and the folder of the run."""
