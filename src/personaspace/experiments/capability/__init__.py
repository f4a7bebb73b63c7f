"""What steering and capping cost."""
