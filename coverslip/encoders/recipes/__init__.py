"""What is known of each published encoder."""
