"""Importance sampling CAMs for weakly-supervised segmentation (Jonnarth and Felsberg, ICASSP 2022)."""
