"""Datasets looked at: their contract, their rows, two side by side."""
