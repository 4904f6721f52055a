"""Projected gradient ascent: FGSM, R-FGSM, BIM, PGD, MI-FGSM."""
