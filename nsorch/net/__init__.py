"""Netlink, links, addresses, routes: plans of pure values, and the engine that carries them out. Knows no processes."""
