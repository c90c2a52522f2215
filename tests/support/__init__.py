"""Requirements of tests: containers, a plain user, and checks that nothing is left behind."""
