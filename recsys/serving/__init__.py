"""A released recommender: the bundle, what makes it, and what answers from its graphs and tables."""
