"""Search over somebody's passages: what the prompt and the page share, and the page itself."""
