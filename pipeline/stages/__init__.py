"""The stages of a run, one file each: `check` refuses invalid settings, `run` does the work."""
