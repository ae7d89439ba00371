"""Windows of a signal: ``--data windows:PATH``."""
