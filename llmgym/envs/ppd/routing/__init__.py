"""PPDRouting: whether a later turn prefills on a prefill node or where it decodes."""
