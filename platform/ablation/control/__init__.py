"""Commands about a study beside its driver: status, logs, pause, cancel, retry, priorities, clean-up."""
