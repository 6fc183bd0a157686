"""Errors of data sets and files."""


class DataError(Exception):
    """A data set cannot be used: the message lists the files and fields, and what is allowed."""


class CheckpointError(Exception):
    """A checkpoint file is missing, truncated or corrupt: the message names it."""


class DivergedError(Exception):
    """Training produced a loss that is not finite: the message names the step."""


class WeightsError(Exception):
    """Pretrained weights are absent, corrupt or do not fit: the message names the file and the tensors."""
