"""The trained models of the training room, whose provenance is asked for here."""
