"""Networks whose gradients are masked, and what AutoAttack's versions find on them."""
