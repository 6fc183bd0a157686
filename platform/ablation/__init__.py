"""Plans, runs, tracks and assembles a paper's tables. Knows no detector and no dashboard."""
