"""The vocabulary that every other part uses. Nothing here knows a device, a socket or an algorithm."""
