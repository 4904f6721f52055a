"""What an attack asks of a model at its slots: loss, input gradient, prediction."""
