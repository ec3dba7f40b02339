"""What rows mean, one module a family of formats."""
