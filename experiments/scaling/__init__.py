"""What many workers, hosts and devices cost, and what they bring."""
