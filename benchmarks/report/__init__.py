"""The report of a benchmark as JSON, Markdown, HTML and figures, and comparisons of several reports."""
