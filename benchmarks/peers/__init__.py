"""Other people's detectors, built so that they do the same work as ours."""
