"""Models for others: graphs, int8, a static Model2Vec model."""
