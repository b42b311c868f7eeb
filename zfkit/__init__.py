"""zfkit: the helper module of the Zeiler & Fergus notebooks."""
