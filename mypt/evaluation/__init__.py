"""What a trained model is worth, measured on supervised tokens."""
