"""Half precision, folding, layouts and recorded graphs."""
