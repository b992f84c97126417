"""How a good pattern is found by trying: one file a search, picked by `search = …` of the closed-loop policy."""
