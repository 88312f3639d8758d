"""Changes beyond markers that a user may switch on."""
