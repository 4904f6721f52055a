"""Loss, gradient to the logits and prediction in one op."""
