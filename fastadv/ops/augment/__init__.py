"""A training batch from bytes: gather, crop, flip, scale, cast, random start."""
