"""The nouns that the numbered scripts share: a stage, a student, a packed batch, a label."""
