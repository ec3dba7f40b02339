"""From files to token shards with spans and masks."""
