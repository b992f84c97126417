"""Node daemons: a pure state machine (`state`) and the thin shell of sockets and devices around it (`daemon`)."""
