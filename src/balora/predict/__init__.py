"""What a finished run says of new texts: classes with probabilities, numbers, generated texts."""
