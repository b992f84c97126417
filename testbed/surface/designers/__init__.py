"""Which phases, which precoders: one file a method, each `design(model, …) → Design`."""
