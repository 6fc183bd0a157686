"""What people do beside a run: pause, cancel, retry, status, logs, gc."""
