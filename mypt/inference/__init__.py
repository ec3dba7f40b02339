"""Where a model meets its tokenizer and template."""
