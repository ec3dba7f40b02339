"""Models and templates of transformers, read and written."""
