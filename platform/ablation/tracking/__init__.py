"""The copy of the results in MLflow."""
