"""Where tokens come from: bytes, a corpus, what was published, a tokenizer.json."""
