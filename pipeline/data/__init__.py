"""Data sets: CIFAR-10, the sample of it in this package, and the user's own class folders."""
