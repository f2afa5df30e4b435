"""What a lab's network is made of: recorded, planned, carried out by one thread, and kept right."""
