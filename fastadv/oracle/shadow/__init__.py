"""What an attack differentiates in place of the user's model: half precision, folded, compiled."""
