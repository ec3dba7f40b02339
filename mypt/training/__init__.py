"""The loop, its loader, its optimizer and its checkpoints."""
