"""Servers and deployments of `mypt up`, and runs asked of them."""
