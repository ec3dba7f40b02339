"""What the training room trains on, which is planned here."""
