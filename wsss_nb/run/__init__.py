"""An experiment: profiles, the run's folder with its cached steps and results, provenance, headless notebooks."""
