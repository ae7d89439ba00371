"""Training of teacher and student: batches, augmentations, the epoch loop, device and options."""
