"""Data sets: CIFAR-10, the sample of it that is shipped, or the user's own class folders."""
