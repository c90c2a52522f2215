"""vhost-user: the back end's side of the protocol for a network device, in plain Python, and a
front end for tests. Nothing here is on the packet path."""
