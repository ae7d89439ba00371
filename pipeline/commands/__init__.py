"""The commands of ``kdedge``, by what they are for, and what they share."""
