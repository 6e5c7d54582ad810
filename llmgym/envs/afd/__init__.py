"""Attention and FFN on instances of their own: `ratio` decides how many of each, `refill` which request takes a free slot."""
