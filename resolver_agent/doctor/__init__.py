"""Whether this node is fit: gathers facts, and judges them."""
