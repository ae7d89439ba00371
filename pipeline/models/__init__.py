"""The networks: the teacher (any torchvision classifier) and the registry of students."""
