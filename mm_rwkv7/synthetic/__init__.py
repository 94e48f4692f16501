"""Pictures and sounds generated from a seed, each with truthful captions, questions and answers."""
