"""The vocabulary: what every other part speaks. Nothing here knows a device, a socket or an algorithm."""
