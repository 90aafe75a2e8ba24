"""Which way is fastest: tactics, their measurement and their choice."""
