"""What teacher and student share in training: batches, augmentations, the epoch loop, device and options."""
