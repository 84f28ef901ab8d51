"""The three stages: losses, training, inference, scores."""
