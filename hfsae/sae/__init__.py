"""Dictionary maths: configuration, activation functions, encoding and decoding."""
