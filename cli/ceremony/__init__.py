"""The key ceremony: a network that two or more people make together, with a transcript that anyone can verify."""
