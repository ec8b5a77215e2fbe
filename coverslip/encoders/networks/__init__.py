"""Networks of published encoders that no library we use builds."""
