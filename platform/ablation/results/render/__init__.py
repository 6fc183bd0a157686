"""Filled tables drawn as Markdown, LaTeX, CSV, HTML and on a terminal: one table, five pens."""
