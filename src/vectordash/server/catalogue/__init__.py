"""GPU types with their figures, and images."""
