"""Messages and the authenticated sockets that carry them."""
