"""The proof of a mask on real batches."""
