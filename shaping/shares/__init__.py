"""Shares of bandwidth by bandwidth functions, as in Google's BwE (SIGCOMM'15): what each of several
groups of flows may use of links that they have in common. Pure arithmetic; nothing here measures or
limits anything."""
