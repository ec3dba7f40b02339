"""Raw files to conversations and documents."""
