"""Text, pairs and evaluation sets, from what people have to indexed shards."""
