"""What a comparison of codecs found, as tables."""
