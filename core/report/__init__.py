"""What people and other tools are shown of engines: data and text, no command line."""
