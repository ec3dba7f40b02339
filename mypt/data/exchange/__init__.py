"""Shards and tables of others, taken in and given out."""
