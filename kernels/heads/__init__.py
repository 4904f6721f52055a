"""Device code of the loss head: loss, gradient to the logits, prediction, verdict."""
