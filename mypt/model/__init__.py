"""The GPT and its loss: tensors only, no files."""
