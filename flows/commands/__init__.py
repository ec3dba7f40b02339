"""What each word after ``mypt`` does."""
