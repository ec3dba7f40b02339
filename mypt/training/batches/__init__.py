"""Which rows make a batch: windows, or packed conversations."""
