"""Thin Prefect tasks: one core call each, then a report."""
