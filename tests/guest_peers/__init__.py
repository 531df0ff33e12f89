"""Other programs' back-ends, and scripted ones, for the tests of the fake guest."""
