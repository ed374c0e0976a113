"""Where problem files come from: generated tasks and files of others."""
