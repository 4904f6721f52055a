"""Device code of APGD's steps in three norms."""
