"""What goes over the network, from the caller's own event loop: sockets, HTTP, pings, captures, TUN devices."""
