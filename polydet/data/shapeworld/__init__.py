"""ShapeWorld: a generated visual world with several taxonomies, written in the real datasets' formats."""
