"""The names of other code bases, on these ops."""
