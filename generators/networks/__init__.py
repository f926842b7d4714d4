"""Networks that generator families share."""
