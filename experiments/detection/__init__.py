"""What studies of object detection share: data, training, evaluation, cost, profiles."""
