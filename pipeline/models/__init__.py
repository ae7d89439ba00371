"""The networks: teachers (any torchvision classifier), students and their registry."""
