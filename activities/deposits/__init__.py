"""What is done about deposit addresses."""
