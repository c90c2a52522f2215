"""What people already have, read as a policy: scripts and listings of tc(8), and the files and
command lines of other tools; and a policy written as a script of tc. One file a format. Nothing
here runs packets or commands."""
