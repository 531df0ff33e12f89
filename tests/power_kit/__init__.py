"""What tests of power cuts share: a recorder, and a store with a bug to be found."""
