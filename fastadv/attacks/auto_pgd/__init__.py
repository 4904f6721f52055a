"""APGD: step sizes that adapt, in three norms."""
