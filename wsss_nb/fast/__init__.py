"""The sums of Eq. 6, of the random walk and of the dense CRF, fast: tested equal to their plain forms."""
