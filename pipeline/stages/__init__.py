"""The stages of a run, one file each: `check` refuses what cannot work, `run` does the work."""
