"""What a benchmark found, as JSON, Markdown, HTML and figures, and the comparison of several."""
