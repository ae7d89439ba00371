"""The commands of ``kdedge``, grouped by purpose, and their shared parts."""
