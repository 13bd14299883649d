"""Order and flow control of one Trigger: what its annotations ask for, and the pure pieces that the dispatcher asks."""
