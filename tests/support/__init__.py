"""What tests need of the machine: containers, a plain user, and proof that nothing is left behind."""
