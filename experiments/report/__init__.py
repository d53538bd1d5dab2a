"""All measurements on one page."""
