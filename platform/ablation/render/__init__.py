"""Filled tables and verdicts as Markdown, LaTeX, CSV, HTML, figures and terminal output."""
