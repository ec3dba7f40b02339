"""Step folders: written whole, verified before use."""
