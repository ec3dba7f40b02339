"""Conversations to token shards, by one process or by many."""
