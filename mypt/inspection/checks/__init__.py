"""The checks that a validation runs, one file a subject."""
