"""Conversations written by a base's own chat template, and whose words stand where in it."""
