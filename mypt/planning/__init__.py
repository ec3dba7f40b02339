"""Forecasts for `mypt plan`: memory, operations and time, said before anything runs."""
