"""From the store to filled tables, statistics and verdicts on claims."""
