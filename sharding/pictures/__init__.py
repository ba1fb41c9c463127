"""Pictures and videos as bytes: codecs, what they announce, resizing."""
