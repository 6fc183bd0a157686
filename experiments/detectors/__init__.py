"""Detectors of several papers on one data set, at one budget."""
