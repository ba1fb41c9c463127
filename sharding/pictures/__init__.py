"""Pictures as bytes: codecs of single frames, the sizes they announce, resizing."""
