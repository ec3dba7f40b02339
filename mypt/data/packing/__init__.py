"""Whole conversations laid into blocks, and what that loses."""
