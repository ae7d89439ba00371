"""Distillation: losses, hints, the schedule of beta, and the stage that puts them together."""
