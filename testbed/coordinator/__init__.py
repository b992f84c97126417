"""The coordinator: a pure state machine (`state`), its schedule (`scheduler`) and the shell around them (`server`)."""
