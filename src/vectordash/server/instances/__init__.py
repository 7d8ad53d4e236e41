"""Instances: renting, placement, charge, life cycle, and everything a renter can do with one."""
