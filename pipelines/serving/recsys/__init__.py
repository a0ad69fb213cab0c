"""The service of a recommender."""
