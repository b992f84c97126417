"""What the surface does, round by round: one file a policy, picked by `[surface] policy = …`."""
