"""What a training will need, said before it runs."""
