"""Python runs this at its start where the folder is on the PYTHONPATH."""

import tiny_teacher

tiny_teacher.install()
