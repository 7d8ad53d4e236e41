"""Clusters, machines, GPUs, and their listings: what could be rented, where, and at what price."""
