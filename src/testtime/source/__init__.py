"""What is learned on source data before deployment."""
