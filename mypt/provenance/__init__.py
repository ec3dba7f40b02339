"""What a checkpoint was made from, asked afterwards."""
