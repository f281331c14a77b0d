"""Students that start from a larger model: GUIDE, tiling, a static table."""
